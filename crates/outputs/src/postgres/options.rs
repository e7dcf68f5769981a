//! How to reach a PostgreSQL store, checked at start; secrets stay inside.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::tls::Connector;
use crate::layout::Layout;

/// Longest name of a schema: PostgreSQL cuts longer ones silently.
const SCHEMA_BYTES_MAX: usize = 63;

const PUBLIC: &str = "public";

/// Limits on time. The server's end what a partitioned or paused leader left open, ours end what a silent server holds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostgresTimeouts {
    /// For a connection and its setup.
    pub connect: Duration,
    /// For one statement, told to the server.
    pub statement: Duration,
    /// For waiting on another node's transaction, told to the server.
    pub lock: Duration,
    /// For a transaction whose client says nothing, told to the server.
    pub idle_in_transaction: Duration,
    /// After this long without an answer on the network, both sides give the connection up.
    pub network: Duration,
}

impl Default for PostgresTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            statement: Duration::from_secs(20),
            lock: Duration::from_secs(5),
            idle_in_transaction: Duration::from_secs(5),
            network: Duration::from_secs(15),
        }
    }
}

/// Where the tables are. Its `Debug` shows no part of the DSN.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Connection string, as URL or as key and value pairs. May hold a password: never printed.
    pub dsn: String,
    /// Schema of the tables; made when missing.
    pub schema: String,
    /// Schema of the ordered views; made when missing. A reader's role gets it as its `search_path`.
    pub reader_schema: String,
    /// Which readers it is for.
    pub layout: Layout,
    /// A file (PEM) with the certificates that the server's may be of, where the DSN demands TLS; `None`: those that the
    /// system trusts.
    pub ca_file: Option<PathBuf>,
    /// Limits on time.
    pub timeouts: PostgresTimeouts,
}

/// Options that cannot work. No variant repeats a part of the DSN: a misplaced character may make it the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostgresOptionsError {
    /// Not a connection string.
    #[error("the DSN of the PostgreSQL output is not valid (it is not shown here because it may hold a password)")]
    Dsn,
    /// The DSN demands TLS, and there is nothing to check the server's certificate with.
    #[error("the DSN of the PostgreSQL output demands TLS: {0}")]
    Tls(String),
    /// The file with certificates is named in the DSN.
    #[error("sslrootcert, sslcert and sslkey are not taken in a DSN: name the file with certificates in `ca_file`")]
    RootCert,
    /// There are certificates, but TLS is not demanded.
    #[error("`ca_file` is for a DSN with sslmode=verify-full")]
    NoTls,
    /// A schema's name that would have to be quoted by every reader.
    #[error("the schema {0:?} must have 1 to 63 characters of a-z, 0-9 and '_', and not start with a digit or pg_")]
    Schema(String),
    /// The views would replace the tables.
    #[error("the reader schema must not be the schema of the tables")]
    SameSchema,
}

impl PostgresOptions {
    /// The usual schemas and limits.
    pub fn new(dsn: impl Into<String>) -> Self {
        Self {
            dsn: dsn.into(),
            schema: PUBLIC.to_owned(),
            reader_schema: "lockstep_reader".to_owned(),
            layout: Layout::default(),
            ca_file: None,
            timeouts: PostgresTimeouts::default(),
        }
    }

    /// The usual schemas and limits, with the tables in `schema`. Each but `public` has a schema of views of its own, so
    /// that outputs can share a database.
    pub fn in_schema(dsn: impl Into<String>, schema: &str) -> Self {
        let mut options = Self::new(dsn);
        if schema != PUBLIC {
            (options.schema, options.reader_schema) = (schema.to_owned(), format!("{schema}_reader"));
        }
        options
    }

    fn parse(&self) -> Result<Config, PostgresOptionsError> {
        if ["sslrootcert=", "sslcert=", "sslkey="].iter().any(|name| self.dsn.contains(name)) {
            return Err(PostgresOptionsError::RootCert);
        }
        // The parser does not know the stricter modes. There is none that is less strict here.
        let dsn = ["verify-full", "verify-ca"]
            .iter()
            .fold(self.dsn.clone(), |dsn, mode| dsn.replace(&format!("sslmode={mode}"), "sslmode=require"));
        dsn.parse().map_err(|_| PostgresOptionsError::Dsn)
    }

    /// Whether the server is reached by TLS.
    ///
    /// # Errors
    /// If the connection string cannot be read.
    pub fn demands_tls(&self) -> Result<bool, PostgresOptionsError> {
        Ok(self.parse()?.get_ssl_mode() == SslMode::Require)
    }

    /// Host, port and database, without any secret.
    ///
    /// # Errors
    /// If the connection string cannot be read.
    pub fn server(&self) -> Result<(String, u16, String), PostgresOptionsError> {
        let config = self.parse()?;
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            _ => "localhost".to_owned(),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let database = config.get_dbname().or(config.get_user()).unwrap_or("postgres").to_owned();
        Ok((host, port, database))
    }

    /// Checks everything that can be checked without a server.
    pub(super) fn connector(&self) -> Result<Connector, PostgresOptionsError> {
        for schema in [&self.schema, &self.reader_schema] {
            check_schema(schema)?;
        }
        if self.schema == self.reader_schema {
            return Err(PostgresOptionsError::SameSchema);
        }
        let mut config = self.parse()?;
        if self.ca_file.is_some() && config.get_ssl_mode() != SslMode::Require {
            return Err(PostgresOptionsError::NoTls);
        }
        if config.get_application_name().is_none() {
            config.application_name("lockstep");
        }
        let network = self.timeouts.network;
        config.connect_timeout(self.timeouts.connect).tcp_user_timeout(network).keepalives(true);
        config.keepalives_idle(network / 3).keepalives_interval(network / 3).keepalives_retries(2);
        Connector::new(config, self.ca_file.as_deref())
    }

    /// What every session says first.
    pub(super) fn session_settings(&self) -> String {
        let PostgresTimeouts { statement, lock, idle_in_transaction, network, .. } = self.timeouts;
        // Another isolation level would turn a lost compare-and-set into a serialization failure.
        format!(
            "SET default_transaction_isolation = 'read committed'; \
             SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
             SET tcp_user_timeout = {}; SET tcp_keepalives_idle = {keepalive}; \
             SET tcp_keepalives_interval = {keepalive}; SET tcp_keepalives_count = 2",
            statement.as_millis(),
            lock.as_millis(),
            idle_in_transaction.as_millis(),
            network.as_millis(),
            keepalive = (network / 3).as_secs().max(1),
        )
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("dsn", &"<not shown>")
            .field("schema", &self.schema)
            .field("reader_schema", &self.reader_schema)
            .field("layout", &self.layout)
            .field("ca_file", &self.ca_file)
            .field("timeouts", &self.timeouts)
            .finish()
    }
}

pub(super) fn check_schema(name: &str) -> Result<(), PostgresOptionsError> {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    let good = (1..=SCHEMA_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.starts_with("pg_");
    if good { Ok(()) } else { Err(PostgresOptionsError::Schema(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_or_debug_output_shows_the_password() {
        let dsns = [
            "host=h user=u password=hunter2 dbname=d",
            "postgres://u:hunter2@h/d?sslmode=require",
            "host=h hunter2 = user",
            "postgres://u:hunter2@h:port/d",
            "host=h password=hunter2 sslmode=verify-full",
            "host=h password=hunter2 sslrootcert=ca.pem",
            "host=h password=hunter2 sslmode=none",
        ];
        for dsn in dsns {
            let options = PostgresOptions::new(dsn);
            assert!(!format!("{options:?}").contains("hunter2"));
            if let Err(error) = options.connector() {
                assert!(!format!("{error} {error:?}").contains("hunter2"));
            }
        }
    }

    #[test]
    fn tls_is_what_the_dsn_demands_and_has_something_to_check_the_server_with() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            Some(directory.path().join(name))
        };
        let certificate = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap().cert.pem();
        let good = file("good.pem", &certificate);
        for mode in ["require", "verify-ca", "verify-full"] {
            for dsn in [format!("host=h user=u sslmode={mode}"), format!("postgres://u@h/d?sslmode={mode}")] {
                let with = |ca_file: &Option<PathBuf>| {
                    PostgresOptions { ca_file: ca_file.clone(), ..PostgresOptions::new(&dsn) }.connector().err()
                };
                assert_eq!(with(&good), None, "{dsn}");
                assert!(PostgresOptions::new(&dsn).demands_tls().unwrap());
                for bad in [file("bad.pem", "none"), Some(directory.path().join("nowhere.pem"))] {
                    assert!(matches!(with(&bad), Some(PostgresOptionsError::Tls(_))), "{bad:?}");
                }
            }
        }
        for dsn in ["host=h user=u", "host=h user=u sslmode=disable"] {
            assert!(PostgresOptions::new(dsn).connector().is_ok());
            let pointless = PostgresOptions { ca_file: good.clone(), ..PostgresOptions::new(dsn) };
            assert_eq!(pointless.connector().err(), Some(PostgresOptionsError::NoTls));
        }
        let named = PostgresOptions::new("host=h user=u sslmode=verify-full sslrootcert=ca.pem");
        assert_eq!(named.connector().err(), Some(PostgresOptionsError::RootCert));
    }

    #[test]
    fn schema_names_need_no_quotes() {
        for bad in ["", "A", "1a", "pg_x", "a\"b", "a.b", &"a".repeat(64)] {
            let options = PostgresOptions { schema: bad.to_owned(), ..PostgresOptions::new("host=h user=u") };
            assert!(matches!(options.connector().err(), Some(PostgresOptionsError::Schema(_))), "{bad}");
        }
    }
}
