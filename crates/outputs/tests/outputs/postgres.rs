//! PostgreSQL: the suite, an outage, and the rate.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::BoxFuture;
use lockstep_outputs::publisher::State;
use lockstep_outputs::{
    FinalTask, Layout, Output, OutputError, Owner, PostgresOptions, PostgresOutput, ReaderError, ReaderPassword,
    set_up_reader,
};
use lockstep_testkit::postgres::Postgres;
use lockstep_types::MessageId;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

use crate::conformance::{Store, Tables};
use crate::support::{FIRST, Feed, Node, eventually, number, outage, owner, signer, tasks, unsigned};

/// A pair of schemas of their own in a server that claims share.
struct Schema<'a> {
    server: &'a Postgres,
    options: PostgresOptions,
}

impl<'a> Schema<'a> {
    fn new(server: &'a Postgres, layout: Layout) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut options = PostgresOptions::in_schema(server.dsn(), &format!("tables_{n}"));
        options.layout = layout;
        options.timeouts.lock = Duration::from_millis(500);
        Self { server, options }
    }

    async fn connect(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.server.dsn(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("SET search_path = {}", self.options.schema)).await.unwrap();
        client
    }
}

#[async_trait]
impl Store for Schema<'_> {
    fn layout(&self) -> Option<Layout> {
        Some(self.options.layout)
    }

    fn open(&self, owner: Owner) -> Arc<dyn Output> {
        Arc::new(PostgresOutput::new(self.options.clone(), owner).unwrap())
    }

    async fn rows(&self) -> Vec<String> {
        let client = self.connect().await;
        let mut out = Vec::new();
        for table in ["messages", "tasks", "lockstep_cursor", "lockstep_gaps", "lockstep_refused"] {
            let rows = client.query(&format!("SELECT t::text FROM {table} t ORDER BY 1"), &[]).await.unwrap();
            out.extend(rows.iter().map(|row| format!("{table} {}", row.get::<_, String>(0))));
        }
        out
    }

    async fn break_down_at(&self, task: u64, writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError {
        let client = self.connect().await;
        // The writer stops at the last row, everything else written, until it is killed there.
        client
            .batch_execute(&format!(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \
               $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END $$; \
             CREATE TRIGGER breaks BEFORE INSERT ON tasks FOR EACH ROW WHEN (NEW.id = {task}) EXECUTE FUNCTION wait(); \
             SELECT pg_advisory_lock(42)"
            ))
            .await
            .unwrap();
        let writing = tokio::spawn(writing);
        eventually("the writer waits and is killed", || async {
            let kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
            client.query_opt(kill, &[]).await.unwrap()
        })
        .await;
        let error = writing.await.unwrap().unwrap_err();
        assert!(matches!(error, OutputError::Retryable(_)), "{error:?}");
        client.batch_execute("SELECT pg_advisory_unlock(42); DROP TRIGGER breaks ON tasks").await.unwrap();
        error
    }

    async fn read_as_w3bstream(&self, task: &FinalTask, project_id: i64) -> Vec<Vec<u8>> {
        let client = self.connect().await;
        client.batch_execute(&format!("SET search_path = {}", self.options.reader_schema)).await.unwrap();
        payloads(&client, self.options.layout, task, project_id).await
    }

    async fn write_as_another(&self) {
        self.open(owner()).last().await.unwrap();
        let sql = "INSERT INTO messages (data) VALUES ('x'); DELETE FROM lockstep_cursor";
        self.connect().await.batch_execute(sql).await.unwrap();
    }
}

#[async_trait]
impl Tables for Schema<'_> {
    fn open_other_layout(&self) -> Arc<dyn Output> {
        let layout = if self.options.layout == Layout::Apinode { Layout::Sprout } else { Layout::Apinode };
        Arc::new(PostgresOutput::new(PostgresOptions { layout, ..self.options.clone() }, owner()).unwrap())
    }

    async fn hold(&self) -> Box<dyn std::any::Any + Send> {
        let client = self.connect().await;
        client.batch_execute("BEGIN; SELECT * FROM lockstep_cursor FOR UPDATE").await.unwrap();
        Box::new(client)
    }

    async fn refuse_rows_of(&self, task: u64) -> Option<()> {
        let sql = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
               $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22P05'; END $$; \
             CREATE TRIGGER refuses BEFORE INSERT ON tasks FOR EACH ROW WHEN (NEW.id = {task}) EXECUTE FUNCTION refuse()"
        );
        self.connect().await.batch_execute(&sql).await.unwrap();
        Some(())
    }

    async fn forget_gaps(&self) {
        let sql = "DROP TABLE lockstep_gaps, lockstep_refused; ALTER TABLE lockstep_cursor DROP COLUMN refusals";
        self.connect().await.batch_execute(sql).await.unwrap();
    }

    async fn alter(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap();
    }

    async fn accept_rows(&self) {
        self.connect().await.batch_execute("DROP TRIGGER refuses ON tasks").await.unwrap();
    }
}

/// With the SQL of the reference's readers, to the letter, and message ids in the wrong order.
async fn payloads(client: &Client, layout: Layout, task: &FinalTask, project_id: i64) -> Vec<Vec<u8>> {
    let (sql, key, column): (_, &(dyn ToSql + Sync), _) = match layout {
        Layout::Apinode => (
            r#"SELECT * FROM "tasks" WHERE (task_id = $1 AND project_id = $2) AND "tasks"."deleted_at" IS NULL ORDER BY "tasks"."id" LIMIT 1"#,
            &task.id.as_bytes(),
            "id",
        ),
        Layout::Sprout => (
            r#"SELECT * FROM "tasks" WHERE (id >= $1 AND project_id = $2) AND "tasks"."deleted_at" IS NULL ORDER BY "tasks"."id" LIMIT 1"#,
            &(task.number.0 as i64),
            "message_id",
        ),
    };
    let Some(row) = client.query_opt(sql, &[key, &project_id]).await.unwrap() else {
        return Vec::new();
    };
    let ids = "SELECT ARRAY(SELECT quote_literal(jsonb_array_elements_text(message_ids)) FROM \"tasks\" WHERE id = $1)";
    let ids: Vec<String> = client.query_one(ids, &[&row.get::<_, i64>("id")]).await.unwrap().get(0);
    let ids = ids.into_iter().rev().collect::<Vec<_>>().join(",");
    let sql = format!(r#"SELECT * FROM "messages" WHERE {column} IN ({ids}) AND "messages"."deleted_at" IS NULL"#);
    client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get("data")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_passes_the_conformance_suite() {
    let server = Postgres::start();
    crate::conformance_suite!(Schema::new(&server, Layout::Apinode));
    crate::conformance_suite!(Schema::new(&server, Layout::Sprout));
}

#[tokio::test(flavor = "multi_thread")]
async fn views_keep_the_signed_order_where_the_tables_have_lost_it() {
    let server = Postgres::start();
    for layout in [Layout::Apinode, Layout::Sprout] {
        let store = Schema::new(&server, layout);
        store.open(owner()).publish(&tasks(FIRST..=200), None).await.unwrap();
        let client = store.connect().await;
        client.batch_execute("VACUUM FULL messages; ").await.unwrap();
        assert_signed_order(&store).await;
        // Nobody of ours does this; it puts the first message of each task behind the second.
        client.batch_execute("UPDATE messages SET updated_at = now() WHERE id % 4 IN (1, 2)").await.unwrap();
        let rows = client.query("SELECT id FROM messages", &[]).await.unwrap();
        assert!(!rows.is_sorted_by_key(|row| row.get::<_, i64>(0)), "the tables are out of order for this test");
        assert_signed_order(&store).await;
        client.batch_execute("VACUUM FULL messages").await.unwrap();
        client.batch_execute("ANALYZE messages").await.unwrap();
        assert_signed_order(&store).await;
    }
}

async fn assert_signed_order(store: &Schema<'_>) {
    for task in tasks(FIRST..=200).iter().step_by(13) {
        let expected: Vec<Vec<u8>> = task.messages.iter().map(|m| m.data.to_vec()).collect();
        assert_eq!(store.read_as_w3bstream(task, 7).await, expected);
    }
}

/// A server that asks everybody but us for a password, and writes all that it is told into its log.
fn server_with_passwords() -> (tempfile::TempDir, Postgres) {
    let directory = tempfile::tempdir().unwrap();
    // The server runs as another user.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.path().join("hba.conf");
    let rules = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&file, rules).unwrap();
    let server = Postgres::start_with(&[("hba_file", file.to_str().unwrap()), ("log_statement", "all")]);
    (directory, server)
}

async fn log_in(server: &Postgres, user: &str, password: &str) -> Result<Client, tokio_postgres::Error> {
    let dsn = format!("host=127.0.0.1 port={} user={user} password={password} dbname=postgres", server.port());
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_role_sees_the_signed_order_and_may_make_tables_of_its_own() {
    let (_directory, server) = server_with_passwords();
    for (layout, role) in [(Layout::Apinode, "prover"), (Layout::Sprout, "coordinator")] {
        let store = Schema::new(&server, layout);
        let output = PostgresOutput::new(store.options.clone(), owner()).unwrap();
        let password = ReaderPassword::new("hunter2 'ü").unwrap();
        assert!(matches!(set_up_reader(&store.options, role, None).await, Err(ReaderError::NoViews { .. })));
        let access = output.set_up_reader(role, Some(&password)).await.unwrap();
        assert_eq!((&access.role[..], &access.database[..]), (role, "postgres"));
        output.publish(&tasks(FIRST..=40), None).await.unwrap();
        // Again, with and without a password.
        assert_eq!(output.set_up_reader(role, None).await.unwrap(), access);
        assert!(log_in(&server, role, "hunter3").await.is_err());
        assert_eq!(
            set_up_reader(&store.options, role, Some(&ReaderPassword::new("hunter3").unwrap())).await.unwrap(),
            access
        );
        assert!(log_in(&server, role, "'hunter2 \\'ü'").await.is_err());
        let reader = log_in(&server, role, "hunter3").await.unwrap();
        // The writer's tables lose their order: an update, and a plan that goes by an index.
        store
            .connect()
            .await
            .batch_execute("UPDATE messages SET updated_at = now() WHERE id % 4 IN (1, 2)")
            .await
            .unwrap();
        for plan in ["SET enable_seqscan = off; SET enable_bitmapscan = off", "RESET ALL"] {
            reader.batch_execute(plan).await.unwrap();
            for task in tasks(FIRST..=40) {
                let expected: Vec<Vec<u8>> = task.messages.iter().map(|m| m.data.to_vec()).collect();
                assert_eq!(payloads(&reader, layout, &task, 7).await, expected);
            }
        }
        // As the reference's migration makes tables of its own.
        let own = "CREATE TABLE \"scanned_block_number\" (\"id\" bigserial PRIMARY KEY, \"number\" bigint); \
                   INSERT INTO scanned_block_number (number) VALUES (7)";
        reader.batch_execute(own).await.unwrap();
        let there = "SELECT count(*) FROM information_schema.tables WHERE table_schema = CURRENT_SCHEMA() \
                     AND table_name = 'scanned_block_number' AND table_type = 'BASE TABLE'";
        assert_eq!(reader.query_one(there, &[]).await.unwrap().get::<_, i64>(0), 1);
        output.set_up_reader(role, None).await.unwrap();
        let (tables, views) = (&store.options.schema, &store.options.reader_schema);
        for denied in [
            format!("SELECT * FROM {tables}.tasks"),
            format!("SELECT * FROM {tables}.lockstep_cursor"),
            "INSERT INTO tasks (project_id) VALUES (7)".to_owned(),
            "DELETE FROM messages".to_owned(),
            format!("CREATE VIEW {views}.more AS SELECT 1"),
            format!("CREATE TABLE {tables}.more (id bigint)"),
        ] {
            let error = reader.batch_execute(&denied).await.unwrap_err();
            let code = error.as_db_error().map(|database| database.code().code().to_owned());
            assert_eq!(code.as_deref(), Some("42501"), "{denied}");
        }
        assert!(matches!(output.set_up_reader("postgres", None).await, Err(ReaderError::Unfit { .. })));
        assert!(matches!(output.set_up_reader("a\"b", None).await, Err(ReaderError::Role(_))));
        // Who may not make roles is told what is missing.
        let dsn = format!("{} password=hunter3", server.dsn().replace("user=postgres", &format!("user={role}")));
        let denied = set_up_reader(&PostgresOptions { dsn, ..store.options.clone() }, "another", None).await;
        assert!(matches!(&denied, Err(ReaderError::Denied(_))), "{denied:?}");
    }
    assert!(server.log().contains("ALTER ROLE \"prover\" PASSWORD 'SCRAM-SHA-256$"));
    assert!(!server.log().contains("hunter"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leaders_open_transaction_is_ended_by_the_server() {
    let server = Postgres::start();
    let mut store = Schema::new(&server, Layout::Apinode);
    store.options.timeouts.lock = std::time::Duration::from_millis(300);
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    let settings = "SELECT current_setting('idle_in_transaction_session_timeout')";
    // Holds the cursor row, as a leader that stopped between two statements of a large call.
    let paused = store.connect().await;
    paused.batch_execute("SET idle_in_transaction_session_timeout = 1500").await.unwrap();
    assert_eq!(paused.query_one(settings, &[]).await.unwrap().get::<_, String>(0), "1500ms");
    paused.batch_execute("BEGIN; UPDATE lockstep_cursor SET last_task = 99").await.unwrap();
    let late = output.publish(&tasks(10..=10), number(9)).await;
    assert!(matches!(late, Err(OutputError::Retryable(ref reason)) if reason.contains("55P03")), "{late:?}");
    eventually("the paused transaction is gone", || async { output.publish(&tasks(10..=10), number(9)).await.ok() })
        .await;
    assert_eq!(output.last().await, Ok(number(10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_skips_and_doubles_nothing() {
    let mut server = Postgres::start();
    let store = Schema::new(&server, Layout::Apinode);
    let (output, dsn_schema) = (store.open(owner()), store.options.clone());
    let feed = Feed::new();
    let node = Node::start(&feed, output, true, None);
    feed.finalize(100);
    node.wait_for("the first tasks", |s| s.state == State::CaughtUp && s.last_published == number(100)).await;
    drop(store);
    server.stop();
    feed.finalize(3_000);
    let status = node.wait_for("the outage is visible", |s| s.state == State::Retrying).await;
    assert_eq!(status.lag, 2_900);
    assert!(status.last_error.is_some());
    outage().await;
    server.start_again();
    node.wait_for("all tasks", |s| s.last_published == number(3_000) && s.last_error.is_none()).await;
    // And a crash while tasks are on their way.
    feed.finalize(6_000);
    node.wait_for("some more tasks", |s| s.last_published > number(3_000)).await;
    server.crash();
    server.start_again();
    node.wait_for("all tasks", |s| s.last_published == number(6_000)).await;
    node.stop().await;

    let store = Schema { server: &server, options: dsn_schema };
    assert_eq!(store.rows().await.len() as u64, 1 + 3 * (6_000 - FIRST + 1));
    let output = store.open(owner());
    for n in (FIRST..=6_000).step_by(97) {
        let mut expected = signer().sign(unsigned(n), Layout::Apinode);
        expected.messages.iter_mut().for_each(|message| message.id = MessageId::ZERO);
        assert_eq!(output.read(&expected.id).await.unwrap(), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_publishes_at_a_rate_that_is_printed() {
    let server = Postgres::start();
    let store = Schema::new(&server, Layout::Apinode);
    let output = store.open(owner());
    let mut batch = tasks(FIRST..=FIRST + 20_479);
    for (sequence, task) in (1..).zip(&mut batch) {
        task.messages.truncate(1);
        task.messages[0].sequence = lockstep_types::Sequence(sequence);
    }
    output.last().await.unwrap();
    let (began, mut last) = (Instant::now(), None);
    for chunk in batch.chunks(1024) {
        last = Some(output.publish(chunk, last).await.unwrap().last);
    }
    println!("PostgreSQL: {:.0} one-message tasks a second", batch.len() as f64 / began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_reached_by_tls_and_only_where_its_certificate_is_good() {
    let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let (good, other) = (made("127.0.0.1"), made("127.0.0.1"));
    let elsewhere = made("elsewhere.example");
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, certificate: &rcgen::CertifiedKey| {
        std::fs::write(directory.path().join(name), certificate.cert.pem()).unwrap();
        Some(directory.path().join(name))
    };
    let server = Postgres::start_with_tls(&good.cert.pem(), &good.key_pair.serialize_pem());
    let options = |ca_file: Option<std::path::PathBuf>, mode: &str| PostgresOptions {
        ca_file,
        ..PostgresOptions::new(format!("{} sslmode={mode}", server.dsn()))
    };
    let output = PostgresOutput::new(options(file("good.pem", &good), "verify-full"), owner()).unwrap();
    let batch = tasks(FIRST..=FIRST + 9);
    output.publish(&batch, None).await.unwrap();
    assert_eq!(output.read(&batch[9].id).await.unwrap().map(|task| task.id), Some(batch[9].id));
    let wrong = [
        (options(None, "disable"), "encryption"),
        (options(file("other.pem", &other), "require"), "certificate"),
        (options(file("elsewhere.pem", &elsewhere), "verify-ca"), "certificate"),
    ];
    for (options, said) in wrong {
        let refused = PostgresOutput::new(options, owner()).unwrap().last().await;
        assert!(
            matches!(&refused, Err(OutputError::Retryable(reason)) if reason.contains(said)),
            "{said}: {refused:?}"
        );
    }
    // A certificate that is trusted, but of another host.
    let server = Postgres::start_with_tls(&elsewhere.cert.pem(), &elsewhere.key_pair.serialize_pem());
    let ca_file = file("elsewhere.pem", &elsewhere);
    let options = PostgresOptions { ca_file, ..PostgresOptions::new(format!("{} sslmode=require", server.dsn())) };
    let refused = PostgresOutput::new(options, owner()).unwrap().last().await;
    assert!(matches!(&refused, Err(OutputError::Retryable(reason)) if reason.contains("certificate")), "{refused:?}");
    // A server that does not speak TLS.
    let server = Postgres::start();
    let ca_file = file("good.pem", &good);
    let options = PostgresOptions { ca_file, ..PostgresOptions::new(format!("{} sslmode=require", server.dsn())) };
    let refused = PostgresOutput::new(options, owner()).unwrap().last().await;
    assert!(matches!(&refused, Err(OutputError::Retryable(reason)) if reason.contains("TLS")), "{refused:?}");
}

#[tokio::test]
async fn no_error_shows_the_password_of_the_dsn() {
    // Nothing listens there.
    let options = PostgresOptions::new("host=127.0.0.1 port=1 user=u password=hunter2 dbname=d");
    let output = PostgresOutput::new(options, owner()).unwrap();
    let error = output.last().await.unwrap_err();
    assert!(matches!(error, OutputError::Retryable(_)));
    assert!(!format!("{error} {error:?} {output:?}").contains("hunter2"));
}
