//! The tables, indexes and views of the apinode generation in PostgreSQL, and our cursor.
//!
//! Tables and indexes are those of the reference, to the letter: its own migration finds nothing to do.

use tokio_postgres::{Client, Error};

use super::options::PostgresOptions;
use crate::apinode::{self, LAYOUT};
use crate::output::{OutputError, Owner};

/// One setup at a time in a database: `IF NOT EXISTS` alone fails when two create at once.
const SETUP_LOCK: i64 = 0x4c6f_636b_7374_6570;

/// Tables that get an ordered view.
const TABLES: [&str; 4] = ["messages", "tasks", "assigned_tasks", "settled_tasks"];

const DDL: &str = r#"
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
CREATE TABLE IF NOT EXISTS {s}."lockstep_cursor" ("only_row" boolean PRIMARY KEY DEFAULT true CHECK ("only_row"),
  "layout" text NOT NULL, "network" bytea NOT NULL, "epoch" bigint NOT NULL,
  "last_task" bigint, "last_task_id" bytea);
"#;

/// Creates what is missing and enters the owner where there is none. Whose store it is, is checked by the caller.
pub(super) async fn set_up(client: &mut Client, options: &PostgresOptions, owner: &Owner) -> Result<(), SetupError> {
    if is_complete(client, options).await? {
        // The usual case. It needs no right to create, and does not wait for anybody's locks.
        return Ok(());
    }
    let (tables, reader) = (&options.schema, &options.reader_schema);
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SETUP_LOCK]).await?;
    if is_complete(transaction.client(), options).await? {
        // Somebody else did it meanwhile, and may be writing already: creating an index that is there takes a lock that
        // writers wait for, and they may hold the next one.
        transaction.commit().await?;
        return Ok(());
    }
    for schema in [tables, reader] {
        let missing = "SELECT 1 WHERE to_regnamespace($1) IS NULL";
        if transaction.query_opt(missing, &[schema]).await?.is_some() {
            transaction.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")).await?;
        }
    }
    transaction.batch_execute(&DDL.replace("{s}", &format!("\"{tables}\""))).await?;
    for table in TABLES {
        let view = format!(
            r#"CREATE OR REPLACE VIEW "{reader}"."{table}" AS SELECT * FROM "{tables}"."{table}" ORDER BY "id""#
        );
        transaction.batch_execute(&view).await?;
    }
    let occupied = format!(
        r#"SELECT EXISTS (SELECT 1 FROM "{tables}"."messages") OR EXISTS (SELECT 1 FROM "{tables}"."tasks" WHERE "id" >= $1)"#
    );
    let first = apinode::id_column(owner.first_task_number.0);
    let enter = format!(
        r#"INSERT INTO "{tables}"."lockstep_cursor" ("layout", "network", "epoch") VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"#
    );
    let network = apinode::network_column(&owner.network);
    let entered = transaction.execute(&enter, &[&LAYOUT, &network, &apinode::epoch_column(owner.epoch)]).await?;
    if entered == 1 && transaction.query_one(&occupied, &[&first]).await?.get(0) {
        transaction.rollback().await?;
        return Err(SetupError::Store(apinode::occupied()));
    }
    transaction.commit().await?;
    Ok(())
}

/// Why a store could not be set up.
pub(super) enum SetupError {
    Postgres(Error),
    Store(OutputError),
}

impl From<Error> for SetupError {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

async fn is_complete(client: &Client, options: &PostgresOptions) -> Result<bool, SetupError> {
    let encoding: String = client.query_one("SHOW server_encoding", &[]).await?.get(0);
    if encoding != "UTF8" {
        let reason = format!("its database has the encoding {encoding}; project versions need UTF8");
        return Err(SetupError::Store(OutputError::Foreign(reason)));
    }
    let (tables, reader) = (options.schema.as_str(), options.reader_schema.as_str());
    let wanted = TABLES.map(|table| (reader, table)).into_iter().chain([(tables, "lockstep_cursor")]);
    let (schemas, names): (Vec<&str>, Vec<&str>) = wanted.unzip();
    // The catalog itself: what functions say of a name may be older than what another connection has just made.
    let found = "SELECT count(*) FROM unnest($1::text[], $2::text[]) AS wanted (schema, name) \
                 JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema \
                 JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name";
    let count: i64 = client.query_one(found, &[&schemas, &names]).await?.get(0);
    if usize::try_from(count) != Ok(names.len()) {
        return Ok(false);
    }
    let entered = format!(r#"SELECT 1 FROM "{tables}"."lockstep_cursor""#);
    Ok(client.query_opt(&entered, &[]).await?.is_some())
}
