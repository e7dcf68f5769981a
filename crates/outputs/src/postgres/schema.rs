//! Makes tables and views, and enters whose they are.

use tokio_postgres::{Client, Error, Transaction};

use super::ddl::{self, ddl};
use super::options::PostgresOptions;
use crate::output::OutputError;
use crate::tables::{self, Ours};

/// One setup at a time in a database: `IF NOT EXISTS` alone fails when two create at once.
const SETUP_LOCK: i64 = 0x4c6f_636b_7374_6570;

/// Creates what is missing and enters the owner where there is none. Whose store it is, is checked by the caller.
pub(super) async fn set_up(client: &mut Client, options: &PostgresOptions, ours: &Ours) -> Result<(), SetupError> {
    if is_complete(client, options, ours).await? {
        // The usual case. It needs no right to create, and does not wait for anybody's locks.
        return Ok(());
    }
    let (tables, reader) = (&options.schema, &options.reader_schema);
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SETUP_LOCK]).await?;
    if is_complete(transaction.client(), options, ours).await? {
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
    let earlier = check_tables(&transaction, tables, ours).await?;
    transaction.batch_execute(&ddl(ours.layout, tables)).await?;
    if earlier == Some(false) {
        // Until now any number without a task was a gap.
        let first = tables::id_column(ours.owner.first_task_number.0);
        let gap = format!(
            r#"INSERT INTO "{tables}"."lockstep_gaps" SELECT $1, "last_task" FROM "{tables}"."lockstep_cursor" WHERE "last_task" >= $1"#
        );
        transaction.execute(&gap, &[&first]).await?;
    }
    for table in ddl::tables(ours.layout) {
        let view = format!(
            r#"CREATE OR REPLACE VIEW "{reader}"."{table}" AS SELECT * FROM "{tables}"."{table}" ORDER BY "id""#
        );
        transaction.batch_execute(&view).await?;
    }
    enter(transaction, tables, ours).await
}

/// Refuses tables of other readers, before anything is made of them. `None`: there is no cursor yet; else whether what
/// was skipped is remembered.
async fn check_tables(transaction: &Transaction<'_>, schema: &str, ours: &Ours) -> Result<Option<bool>, SetupError> {
    let there = |table: &str| format!("\"{schema}\".\"{table}\"");
    let is_there = "SELECT to_regclass($1) IS NOT NULL";
    let marker = "SELECT c.relname FROM pg_catalog.pg_class AS c \
                  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                  WHERE n.nspname = $1 AND c.relname IN ('tasks', 'messages') AND NOT EXISTS (SELECT 1 FROM \
                    pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = $2) ORDER BY 1 LIMIT 1";
    let mut gaps = None;
    if transaction.query_one(is_there, &[&there("lockstep_cursor")]).await?.get(0) {
        let layout = format!(r#"SELECT "layout" FROM "{schema}"."lockstep_cursor""#);
        let layout = transaction.query_opt(&layout, &[]).await?.map(|row| row.get::<_, String>(0));
        if let Some(layout) = layout.filter(|layout| layout != ours.layout.name()) {
            return Err(SetupError::Store(tables::other_layout(&layout, ours.layout)));
        }
        gaps = Some(transaction.query_one(is_there, &[&there("lockstep_gaps")]).await?.get(0));
    }
    if let Some(row) = transaction.query_opt(marker, &[&schema, &ours.layout.marker()]).await? {
        let (table, wanted) = (row.get::<_, String>(0), ours.layout);
        let reason =
            format!("its table {table:?} is not of the layout {:?}; give it a schema of its own", wanted.name());
        return Err(SetupError::Store(OutputError::Foreign(reason)));
    }
    Ok(gaps)
}

/// Enters the owner where there is none.
async fn enter(transaction: Transaction<'_>, tables: &str, ours: &Ours) -> Result<(), SetupError> {
    let owner = &ours.owner;
    let occupied = format!(
        r#"SELECT EXISTS (SELECT 1 FROM "{tables}"."messages") OR EXISTS (SELECT 1 FROM "{tables}"."tasks" WHERE "id" >= $1)"#
    );
    let first = tables::id_column(owner.first_task_number.0);
    let enter = format!(
        r#"INSERT INTO "{tables}"."lockstep_cursor" ("layout", "network", "epoch") VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"#
    );
    let (network, epoch) = (tables::network_column(&owner.network), tables::epoch_column(owner.epoch));
    let entered = transaction.execute(&enter, &[&ours.layout.name(), &network, &epoch]).await?;
    if entered == 1 && transaction.query_one(&occupied, &[&first]).await?.get(0) {
        transaction.rollback().await?;
        return Err(SetupError::Store(tables::occupied()));
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

async fn is_complete(client: &Client, options: &PostgresOptions, ours: &Ours) -> Result<bool, SetupError> {
    let encoding: String = client.query_one("SHOW server_encoding", &[]).await?.get(0);
    if encoding != "UTF8" {
        let reason = format!("its database has the encoding {encoding}; project versions need UTF8");
        return Err(SetupError::Store(OutputError::Foreign(reason)));
    }
    let (tables, reader) = (options.schema.as_str(), options.reader_schema.as_str());
    let wanted = ddl::tables(ours.layout).iter().map(|table| (reader, *table)).chain([(tables, ddl::NEWEST)]);
    let (schemas, names): (Vec<&str>, Vec<&str>) = wanted.unzip();
    // The catalog itself: what functions say of a name may be older than what another connection has just made.
    let found = "SELECT count(*) FROM unnest($1::text[], $2::text[]) AS wanted (schema, name) \
                 JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema \
                 JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name";
    let count: i64 = client.query_one(found, &[&schemas, &names]).await?.get(0);
    if usize::try_from(count) != Ok(names.len()) {
        return Ok(false);
    }
    let entered = format!(r#"SELECT "layout" FROM "{tables}"."lockstep_cursor""#);
    let layout = client.query_opt(&entered, &[]).await?.map(|row| row.get::<_, String>(0));
    match layout {
        Some(layout) if layout != ours.layout.name() => {
            Err(SetupError::Store(tables::other_layout(&layout, ours.layout)))
        }
        layout => Ok(layout.is_some()),
    }
}
