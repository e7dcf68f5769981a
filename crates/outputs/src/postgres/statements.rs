//! What is said to PostgreSQL, for either layout. Both take the same parameters ([`super::columns`]); the sprout
//! generation's texts are made of them by the server.

use tokio_postgres::{Client, Error, Statement};

use crate::layout::Layout;

/// How rows are written and read in a layout.
struct Shape {
    message_columns: &'static str,
    message_values: &'static str,
    task_columns: &'static str,
    task_values: &'static str,
    /// Of a task: its id as bytes, then its signature.
    task_read: [&'static str; 2],
    /// Of a message: its name and its device as bytes.
    message_read: [&'static str; 2],
}

const APINODE: Shape = Shape {
    message_columns: r#""device_id", "project_id", "project_version", "task_id", "data""#,
    message_values: "device, project, version, task, data",
    task_columns: r#""task_id", "project_id", "message_ids", "signature""#,
    task_values: "task, project, messages::jsonb, signature",
    task_read: [r#""task_id""#, r#""signature""#],
    message_read: ["''::bytea", r#""device_id""#],
};

const SPROUT: Shape = Shape {
    message_columns: r#""message_id", "client_id", "project_id", "project_version", "internal_task_id", "data""#,
    message_values: "'0x' || encode(name, 'hex'), \
                     CASE WHEN device = decode(repeat('00', 20), 'hex') THEN '' \
                     ELSE 'did:io:0x' || encode(device, 'hex') END, \
                     project, version, '0x' || encode(task, 'hex'), data",
    task_columns: r#""internal_task_id", "project_id", "message_ids", "signature""#,
    task_values: "'0x' || encode(task, 'hex'), project, messages::jsonb, '0x' || encode(signature, 'hex')",
    task_read: [r#"convert_to("internal_task_id", 'UTF8')"#, r#"convert_to("signature", 'UTF8')"#],
    message_read: [r#"convert_to("message_id", 'UTF8')"#, r#"convert_to("client_id", 'UTF8')"#],
};

fn shape(layout: Layout) -> &'static Shape {
    match layout {
        Layout::Apinode => &APINODE,
        Layout::Sprout => &SPROUT,
    }
}

/// The owner's cursor row, where no project began or ceased to halt since it was looked at ($4).
const EXPECTED: &str = r#""layout" = '{layout}' AND "network" = $1 AND "epoch" = $2
    AND "last_task" IS NOT DISTINCT FROM $3 AND "refusals" = $4"#;
/// Leaves out tasks of projects that halt: they wait. What this reads is as of the statement's beginning; had it changed
/// by the time that the cursor row is ours, `refusals` would be another.
const NOT_HALTED: &str = r#" AND project NOT IN (SELECT "project_id" FROM {s}."lockstep_refused")"#;

/// Cursor and rows in one statement: it either happens whole or not at all, and nothing stays open between the client's
/// words. A COPY could not be ended by a time limit while the server waits for a paused client's data.
const APPEND: &str = r#"
WITH moved AS (
  UPDATE {s}."lockstep_cursor" SET "last_task" = $5, "last_task_id" = $6 WHERE {expected} RETURNING 1
), {rows}
SELECT 1 FROM moved"#;
/// As [`APPEND`], below the cursor. A task that is there already is left alone, with its messages; one that was refused
/// is so no longer.
const FILL: &str = r#"
WITH ours AS (
  SELECT 1 FROM {s}."lockstep_cursor"
  WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" >= $3
), new_tasks AS (
  INSERT INTO {s}."tasks" ("id", "created_at", "updated_at", {task_columns})
  SELECT id, at, at, {task_values} {tasks_from} WHERE EXISTS (SELECT 1 FROM ours)
  ON CONFLICT DO NOTHING RETURNING "id" AS filled
), new_messages AS (
  INSERT INTO {s}."messages" ("id", "created_at", "updated_at", {message_columns})
  SELECT id, at, at, {message_values} {messages_from}
  WHERE task IN (SELECT task {tasks_from} WHERE id IN (SELECT filled FROM new_tasks))
)
{forget}"#;
/// In the layout where projects halt, a row is not of the task of that number alone.
const FORGET: &str = r#"DELETE FROM {s}."lockstep_refused" WHERE "task" IN (SELECT filled FROM new_tasks)"#;
const NEXT_ID: &str = r#"SELECT min("id") FROM {s}."tasks" WHERE "id" BETWEEN $1 AND $2"#;
/// The last number of the run of tasks that begins with the first of a range.
const END_OF_RUN: &str = r#"
SELECT "id" FROM {s}."tasks" AS run WHERE "id" BETWEEN $1 AND $2
  AND NOT EXISTS (SELECT 1 FROM {s}."tasks" AS next WHERE next."id" = run."id" + 1)
ORDER BY "id" LIMIT 1"#;
const CURSOR: &str = r#"
SELECT "layout", "network", "epoch", "last_task", "refusals" FROM {s}."lockstep_cursor""#;
const SKIP: &str = r#"
WITH moved AS (
  UPDATE {s}."lockstep_cursor" SET "last_task" = $5, "last_task_id" = NULL WHERE {expected} RETURNING 1
)
INSERT INTO {s}."lockstep_gaps" ("first", "last") SELECT $6::bigint, $5 FROM moved"#;
const PASS: &str = r#"
UPDATE {s}."lockstep_cursor" SET "last_task" = $5, "last_task_id" = NULL WHERE {expected}"#;
const NEXT_SKIPPED: &str = r#"
SELECT "first", "last" FROM {s}."lockstep_gaps" WHERE "last" >= $1 AND "first" <= $2 ORDER BY "first", "last" LIMIT 1"#;
const COMPLETE: &str = r#"
WITH cut AS (DELETE FROM {s}."lockstep_gaps" WHERE "last" >= $1 AND "first" <= $2 RETURNING "first", "last")
INSERT INTO {s}."lockstep_gaps" ("first", "last")
SELECT "first", $1 - 1 FROM cut WHERE "first" < $1 UNION ALL SELECT $2 + 1, "last" FROM cut WHERE "last" > $2"#;
const ADOPT: &str = r#"
UPDATE {s}."lockstep_cursor" SET "epoch" = $3
WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" IS NOT DISTINCT FROM $4"#;
const IDS: &str = r#"SELECT "id", {task_id} FROM {s}."tasks" WHERE "id" BETWEEN $1 AND $2 ORDER BY "id""#;
const TASK: &str = r#"
SELECT "id", "project_id", "created_at", "message_ids"::text, {signature} FROM {s}."tasks" WHERE "{marker}" = $1"#;
const MESSAGES: &str = r#"
SELECT "id", {name}, "project_version", {device}, "data" FROM {s}."messages" WHERE "{marker}" = $1 ORDER BY "id""#;

/// A row that nobody has marked as deleted, nor as changed.
const AS_MADE: &str = r#"("deleted_at" IS NULL AND "updated_at" IS NOT DISTINCT FROM "created_at")"#;
/// Tasks with how many bytes their payloads have, so that no more are fetched than there is room for.
const STORED: &str = r#"
SELECT "id", {task_id}, "project_id", "created_at", "message_ids"::text, {signature}, {as_made}, (
  SELECT coalesce(sum(octet_length(m."data")), 0)::bigint FROM {s}."messages" AS m WHERE m."{marker}" = t."{marker}")
FROM {s}."tasks" AS t WHERE "id" >= $1 ORDER BY "id" LIMIT $2"#;
const STORED_MESSAGES: &str = r#"
SELECT {task_id}, "id", {name}, "project_version", {device}, "data", "project_id", "created_at", {as_made}
FROM {s}."messages" WHERE "{marker}" = ANY($1) ORDER BY "id""#;
/// Messages of no task, of a number of them by ascending id; one look, so that a writer's rows are all there or none.
const STRAY_MESSAGES: &str = r#"
WITH page AS (
  SELECT "id", "{marker}" AS task FROM {s}."messages" WHERE "id" > $1 ORDER BY "id" LIMIT $2
)
SELECT (SELECT max("id") FROM page), (SELECT count(*) FROM page), ARRAY(
  SELECT "id" FROM page WHERE NOT EXISTS (SELECT 1 FROM {s}."tasks" AS t WHERE t."{marker}" = page.task) ORDER BY "id")"#;
/// Tasks behind the cursor, which stands at $1 where there was none.
const STRAY_TASKS: &str = r#"
SELECT "id" FROM {s}."tasks" WHERE "id" > (SELECT coalesce("last_task", $1) FROM {s}."lockstep_cursor")
ORDER BY "id" LIMIT $2"#;

/// A refused task: the cursor moves behind it, and where projects halt, its own does unless it does already.
const REFUSE: &str = r#"
WITH moved AS (
  UPDATE {s}."lockstep_cursor" SET "last_task" = $5, "last_task_id" = NULL, "refusals" = "refusals" + 1
  WHERE {expected} RETURNING 1
), remembered AS (
  INSERT INTO {s}."lockstep_refused" ("task", "task_id", "project_id", "reason")
  SELECT $5, $6::bytea, project, $8::text FROM (VALUES ($7::bigint)) AS row (project)
  WHERE EXISTS (SELECT 1 FROM moved){not_halted}
)
SELECT 1 FROM moved"#;
const REFUSED: &str = r#"
SELECT "task", "project_id", "task_id", "reason" FROM {s}."lockstep_refused"
WHERE $1::bigint IS NULL OR "task" > $1 ORDER BY "task", "project_id" LIMIT $2"#;
const REFUSED_COUNT: &str = r#"SELECT count(*) FROM {s}."lockstep_refused""#;
const HALTS: &str = r#"SELECT "project_id", "task" FROM {s}."lockstep_refused""#;
/// The cursor row is locked first, and its `refusals` changed, so that no append goes by an older list of halts.
const RESUME: &str = r#"
WITH ours AS (
  UPDATE {s}."lockstep_cursor" SET "refusals" = "refusals" + 1
  WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" >= $5::bigint - 1 RETURNING 1
), moved AS (
  UPDATE {s}."lockstep_refused" SET "task" = $5, "task_id" = $6, "reason" = $7
  WHERE "project_id" = $3 AND "task" = $4 AND EXISTS (SELECT 1 FROM ours) RETURNING 1
), {rows}
SELECT 1 FROM moved"#;
const LIFT: &str = r#"
WITH ours AS (
  UPDATE {s}."lockstep_cursor" SET "refusals" = "refusals" + 1
  WHERE "layout" = '{layout}' AND "network" = $1 AND "epoch" = $2 AND "last_task" = $4 RETURNING 1
)
DELETE FROM {s}."lockstep_refused" WHERE "project_id" = $3 AND "task" = $4 + 1 AND EXISTS (SELECT 1 FROM ours)"#;

/// The messages of a call, eight parameters from `$first` on.
fn messages_from(first: usize) -> String {
    let types = ["bigint", "timestamptz", "bytea", "bigint", "text", "bytea", "bytea", "bytea"];
    unnest(first, &types, "id, at, device, project, version, task, data, name")
}

/// The tasks of a call, six parameters from `$first` on.
fn tasks_from(first: usize) -> String {
    unnest(
        first,
        &["bigint", "timestamptz", "bytea", "bigint", "text", "bytea"],
        "id, at, task, project, messages, signature",
    )
}

fn unnest(first: usize, types: &[&str], names: &str) -> String {
    let parameters: Vec<String> = (first..).zip(types).map(|(n, name)| format!("${n}::{name}[]")).collect();
    format!("FROM unnest({}) AS row ({names})", parameters.join(", "))
}

/// Inserts of messages and tasks, parameters from `$first` on, where `moved` has a row.
fn rows(shape: &Shape, first: usize, also: &str) -> String {
    let Shape { message_columns, message_values, task_columns, task_values, .. } = shape;
    format!(
        r#"new_messages AS (
  INSERT INTO {{s}}."messages" ("id", "created_at", "updated_at", {message_columns})
  SELECT id, at, at, {message_values} {} WHERE EXISTS (SELECT 1 FROM moved){also}
), new_tasks AS (
  INSERT INTO {{s}}."tasks" ("id", "created_at", "updated_at", {task_columns})
  SELECT id, at, at, {task_values} {} WHERE EXISTS (SELECT 1 FROM moved){also}
)"#,
        messages_from(first),
        tasks_from(first + 8),
    )
}

/// Prepared statements of one connection.
pub(super) struct Statements {
    pub append: Statement,
    pub fill: Statement,
    pub next_id: Statement,
    pub end_of_run: Statement,
    pub cursor: Statement,
    pub skip: Statement,
    pub pass: Statement,
    pub next_skipped: Statement,
    pub complete: Statement,
    pub adopt: Statement,
    pub ids: Statement,
    pub task: Statement,
    pub messages: Statement,
    pub stored: Statement,
    pub stored_messages: Statement,
    pub stray_messages: Statement,
    pub stray_tasks: Statement,
    pub refuse: Statement,
    pub refused: Statement,
    pub refused_count: Statement,
    pub halts: Statement,
    pub resume: Statement,
    pub lift: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Client, schema: &str, layout: Layout) -> Result<Self, Error> {
        let shape = shape(layout);
        let not_halted = if layout.halts() { NOT_HALTED } else { "" };
        let forget = if layout.halts() { "SELECT 1" } else { FORGET };
        let text = |sql: &str| {
            sql.replace("{expected}", EXPECTED)
                .replace("{not_halted}", not_halted)
                .replace("{forget}", forget)
                .replace("{task_columns}", shape.task_columns)
                .replace("{task_values}", shape.task_values)
                .replace("{message_columns}", shape.message_columns)
                .replace("{message_values}", shape.message_values)
                .replace("{task_id}", shape.task_read[0])
                .replace("{signature}", shape.task_read[1])
                .replace("{name}", shape.message_read[0])
                .replace("{device}", shape.message_read[1])
                .replace("{as_made}", AS_MADE)
                .replace("{marker}", layout.marker())
                .replace("{layout}", layout.name())
                .replace("{s}", &format!("\"{schema}\""))
        };
        let prepare = async |sql: &str| client.prepare(&text(sql)).await;
        let fill = FILL.replace("{messages_from}", &messages_from(4)).replace("{tasks_from}", &tasks_from(12));
        Ok(Self {
            append: prepare(&APPEND.replace("{rows}", &rows(shape, 7, not_halted))).await?,
            fill: prepare(&fill).await?,
            next_id: prepare(NEXT_ID).await?,
            end_of_run: prepare(END_OF_RUN).await?,
            cursor: prepare(CURSOR).await?,
            skip: prepare(SKIP).await?,
            pass: prepare(PASS).await?,
            next_skipped: prepare(NEXT_SKIPPED).await?,
            complete: prepare(COMPLETE).await?,
            adopt: prepare(ADOPT).await?,
            ids: prepare(IDS).await?,
            task: prepare(TASK).await?,
            messages: prepare(MESSAGES).await?,
            stored: prepare(STORED).await?,
            stored_messages: prepare(STORED_MESSAGES).await?,
            stray_messages: prepare(STRAY_MESSAGES).await?,
            stray_tasks: prepare(STRAY_TASKS).await?,
            refuse: prepare(REFUSE).await?,
            refused: prepare(REFUSED).await?,
            refused_count: prepare(REFUSED_COUNT).await?,
            halts: prepare(HALTS).await?,
            resume: prepare(&RESUME.replace("{rows}", &rows(shape, 8, ""))).await?,
            lift: prepare(LIFT).await?,
        })
    }
}
