//! The reference's tables and indexes, in the types that its own library gives them in SQLite.

use crate::layout::Layout;

const APINODE: &str = r#"
CREATE TABLE IF NOT EXISTS "messages" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "device_id" blob, "project_id" integer, "project_version" text, "task_id" blob, "data" blob);
CREATE INDEX IF NOT EXISTS "task_id" ON "messages" ("task_id");
CREATE INDEX IF NOT EXISTS "message_fetch" ON "messages" ("device_id", "project_id", "project_version");
CREATE INDEX IF NOT EXISTS "idx_messages_deleted_at" ON "messages" ("deleted_at");
CREATE TABLE IF NOT EXISTS "tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "task_id" blob, "project_id" integer, "message_ids" JSON NOT NULL, "signature" blob NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS "task_uniq" ON "tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_tasks_deleted_at" ON "tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS "assigned_tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "task_id" blob, "project_id" integer, "prover" blob);
CREATE UNIQUE INDEX IF NOT EXISTS "assigned_task_uniq" ON "assigned_tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_assigned_tasks_deleted_at" ON "assigned_tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS "settled_tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "task_id" blob, "project_id" integer, "tx" blob NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS "settled_task_uniq" ON "settled_tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_settled_tasks_deleted_at" ON "settled_tasks" ("deleted_at");
"#;

/// The unique index is ours: the reference has none by a task's id.
const SPROUT: &str = r#"
CREATE TABLE IF NOT EXISTS "messages" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "message_id" text, "client_id" text, "project_id" integer, "project_version" text, "data" blob,
  "internal_task_id" text);
CREATE INDEX IF NOT EXISTS "internal_task_id" ON "messages" ("internal_task_id");
CREATE INDEX IF NOT EXISTS "message_fetch" ON "messages" ("client_id", "project_id", "project_version");
CREATE INDEX IF NOT EXISTS "message_id" ON "messages" ("message_id");
CREATE INDEX IF NOT EXISTS "idx_messages_deleted_at" ON "messages" ("deleted_at");
CREATE TABLE IF NOT EXISTS "tasks" ("id" integer PRIMARY KEY, "created_at" datetime, "updated_at" datetime,
  "deleted_at" datetime, "project_id" integer, "internal_task_id" text, "message_ids" JSON NOT NULL, "signature" text);
CREATE INDEX IF NOT EXISTS "task_fetch" ON "tasks" ("project_id");
CREATE INDEX IF NOT EXISTS "idx_tasks_deleted_at" ON "tasks" ("deleted_at");
CREATE UNIQUE INDEX IF NOT EXISTS "lockstep_task_uniq" ON "tasks" ("internal_task_id");
"#;

const OWN: &str = r#"
CREATE TABLE IF NOT EXISTS "lockstep_cursor" ("only_row" integer PRIMARY KEY CHECK ("only_row" = 1),
  "layout" text NOT NULL, "network" blob NOT NULL, "epoch" integer NOT NULL,
  "last_task" integer, "last_task_id" blob);
CREATE TABLE IF NOT EXISTS "lockstep_gaps" ("first" integer NOT NULL, "last" integer NOT NULL);
CREATE INDEX IF NOT EXISTS "lockstep_gaps_last" ON "lockstep_gaps" ("last");
CREATE TABLE IF NOT EXISTS "lockstep_refused" ("task" integer NOT NULL, "task_id" blob, "project_id" integer NOT NULL,
  "reason" text NOT NULL, PRIMARY KEY ("task", "project_id"));
CREATE VIEW IF NOT EXISTS "reader_messages" AS SELECT * FROM "messages" ORDER BY "id";
CREATE VIEW IF NOT EXISTS "reader_tasks" AS SELECT * FROM "tasks" ORDER BY "id";
"#;

/// Makes what is missing.
pub(super) fn ddl(layout: Layout) -> String {
    match layout {
        Layout::Apinode => [APINODE, OWN].concat(),
        Layout::Sprout => [SPROUT, OWN].concat(),
    }
}
