//! Tables and indexes of both generations, those of the reference to the letter: its own migration finds nothing to do.

use crate::layout::Layout;

const APINODE: &str = r#"
CREATE TABLE IF NOT EXISTS {s}."messages" ("id" bigserial, "created_at" timestamptz, "updated_at" timestamptz,
  "deleted_at" timestamptz, "device_id" bytea, "project_id" bigint, "project_version" text, "task_id" bytea,
  "data" bytea, PRIMARY KEY ("id"));
CREATE INDEX IF NOT EXISTS "task_id" ON {s}."messages" ("task_id");
CREATE INDEX IF NOT EXISTS "message_fetch" ON {s}."messages" ("device_id", "project_id", "project_version");
CREATE INDEX IF NOT EXISTS "idx_messages_deleted_at" ON {s}."messages" ("deleted_at");
CREATE TABLE IF NOT EXISTS {s}."tasks" ("id" bigserial, "created_at" timestamptz, "updated_at" timestamptz,
  "deleted_at" timestamptz, "task_id" bytea, "project_id" bigint, "message_ids" JSONB NOT NULL,
  "signature" bytea NOT NULL, PRIMARY KEY ("id"));
CREATE UNIQUE INDEX IF NOT EXISTS "task_uniq" ON {s}."tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_tasks_deleted_at" ON {s}."tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS {s}."assigned_tasks" ("id" bigserial, "created_at" timestamptz, "updated_at" timestamptz,
  "deleted_at" timestamptz, "task_id" bytea, "project_id" bigint, "prover" bytea, PRIMARY KEY ("id"));
CREATE UNIQUE INDEX IF NOT EXISTS "assigned_task_uniq" ON {s}."assigned_tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_assigned_tasks_deleted_at" ON {s}."assigned_tasks" ("deleted_at");
CREATE TABLE IF NOT EXISTS {s}."settled_tasks" ("id" bigserial, "created_at" timestamptz, "updated_at" timestamptz,
  "deleted_at" timestamptz, "task_id" bytea, "project_id" bigint, "tx" bytea NOT NULL, PRIMARY KEY ("id"));
CREATE UNIQUE INDEX IF NOT EXISTS "settled_task_uniq" ON {s}."settled_tasks" ("task_id", "project_id");
CREATE INDEX IF NOT EXISTS "idx_settled_tasks_deleted_at" ON {s}."settled_tasks" ("deleted_at");
"#;

/// The unique index is ours: the reference has none by a task's id.
const SPROUT: &str = r#"
CREATE TABLE IF NOT EXISTS {s}."messages" ("id" bigserial, "created_at" timestamptz, "updated_at" timestamptz,
  "deleted_at" timestamptz, "message_id" text, "client_id" text, "project_id" bigint, "project_version" text,
  "data" bytea, "internal_task_id" text, PRIMARY KEY ("id"));
CREATE INDEX IF NOT EXISTS "internal_task_id" ON {s}."messages" ("internal_task_id");
CREATE INDEX IF NOT EXISTS "message_fetch" ON {s}."messages" ("client_id", "project_id", "project_version");
CREATE INDEX IF NOT EXISTS "message_id" ON {s}."messages" ("message_id");
CREATE INDEX IF NOT EXISTS "idx_messages_deleted_at" ON {s}."messages" ("deleted_at");
CREATE TABLE IF NOT EXISTS {s}."tasks" ("id" bigserial, "created_at" timestamptz, "updated_at" timestamptz,
  "deleted_at" timestamptz, "project_id" bigint, "internal_task_id" text, "message_ids" JSONB NOT NULL,
  "signature" text, PRIMARY KEY ("id"));
CREATE INDEX IF NOT EXISTS "task_fetch" ON {s}."tasks" ("project_id");
CREATE INDEX IF NOT EXISTS "idx_tasks_deleted_at" ON {s}."tasks" ("deleted_at");
CREATE UNIQUE INDEX IF NOT EXISTS "lockstep_task_uniq" ON {s}."tasks" ("internal_task_id");
"#;

/// Our own: where we are, what was skipped, and what was refused. An older cursor has no count of refusals.
const OWN: &str = r#"
CREATE TABLE IF NOT EXISTS {s}."lockstep_cursor" ("only_row" boolean PRIMARY KEY DEFAULT true CHECK ("only_row"),
  "layout" text NOT NULL, "network" bytea NOT NULL, "epoch" bigint NOT NULL,
  "last_task" bigint, "last_task_id" bytea);
ALTER TABLE {s}."lockstep_cursor" ADD COLUMN IF NOT EXISTS "refusals" bigint NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS {s}."lockstep_gaps" ("first" bigint NOT NULL, "last" bigint NOT NULL);
CREATE INDEX IF NOT EXISTS "lockstep_gaps_last" ON {s}."lockstep_gaps" ("last");
CREATE TABLE IF NOT EXISTS {s}."lockstep_refused" ("task" bigint NOT NULL, "task_id" bytea,
  "project_id" bigint NOT NULL, "reason" text NOT NULL, PRIMARY KEY ("task", "project_id"));
"#;

/// Tables that readers read, and that get an ordered view.
pub(super) fn tables(layout: Layout) -> &'static [&'static str] {
    match layout {
        Layout::Apinode => &["messages", "tasks", "assigned_tasks", "settled_tasks"],
        Layout::Sprout => &["messages", "tasks"],
    }
}

/// The newest of our own tables: where it is, the others are.
pub(super) const NEWEST: &str = "lockstep_refused";

/// Makes what is missing in a schema.
pub(super) fn ddl(layout: Layout, schema: &str) -> String {
    let tables = match layout {
        Layout::Apinode => APINODE,
        Layout::Sprout => SPROUT,
    };
    format!("{tables}{OWN}").replace("{s}", &format!("\"{schema}\""))
}
