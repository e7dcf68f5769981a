//! A role for a reader: it sees the ordered views and nothing else of ours, under the names that it asks for, and may
//! make tables of its own.
//!
//! The schema for those comes first in its `search_path`: there what it makes is made, and there the reference's
//! migration looks whether it is there. A table of the same name would hide a view, so it must not be called `messages`
//! or `tasks`.

use std::fmt;

use tokio::time::timeout;
use tokio_postgres::{Client, Error, Transaction};

use super::ddl;
use super::options::{PostgresOptions, PostgresOptionsError, check_schema};
use super::session::{describe, is_denied};

/// Behind the name of a role: its schema.
const OWN_SUFFIX: &str = "_own";
/// Longest name of a role: its schema's name has to fit, too.
const ROLE_BYTES_MAX: usize = 63 - OWN_SUFFIX.len();
/// Longest password, as the server's own tools have it.
const PASSWORD_BYTES_MAX: usize = 1_024;

/// A reader's password. Never shown, and never sent: the server gets a verifier of it.
#[derive(Clone)]
pub struct ReaderPassword(String);

impl ReaderPassword {
    /// Takes a password; `None` where it is empty, too long, or has NUL or a line's end in it.
    pub fn new(password: &str) -> Option<Self> {
        let fits = (1..=PASSWORD_BYTES_MAX).contains(&password.len()) && !password.contains(['\0', '\n', '\r']);
        fits.then(|| Self(password.to_owned()))
    }
}

impl fmt::Debug for ReaderPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<not shown>")
    }
}

/// What a reader needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderAccess {
    /// As whom to log in.
    pub role: String,
    /// To which database.
    pub database: String,
    /// Schema of its own tables.
    pub own_schema: String,
    /// Schema of the ordered views.
    pub reader_schema: String,
    /// The views in it.
    pub views: Vec<&'static str>,
}

/// Why a reader was not set up. Nothing was changed. No variant contains a password.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    /// Choose another name.
    #[error(
        "the role {0:?} must have 1 to {max} characters of a-z, 0-9 and '_', and not start with a digit or pg_",
        max = ROLE_BYTES_MAX
    )]
    Role(String),
    /// Choose another role.
    #[error("the role {role} {reason}: make one for the reader alone")]
    Unfit {
        /// Its name.
        role: String,
        /// What it is.
        reason: &'static str,
    },
    /// Mend the output's options.
    #[error(transparent)]
    Options(#[from] PostgresOptionsError),
    /// Let a node publish first, and of this layout.
    #[error(
        "there is no view {schema}.{view} with the columns of the layout {layout}: start the node, so that it makes its tables"
    )]
    NoViews {
        /// Where it was looked for.
        schema: String,
        /// What is missing.
        view: &'static str,
        /// Of which layout it has to be.
        layout: &'static str,
    },
    /// Run it with the DSN of another user.
    #[error("the user of this connection must be a superuser, or have CREATEROLE and the right to create schemas: {0}")]
    Denied(String),
    /// Try again later.
    #[error("the server does not answer as it should: {0}")]
    Server(String),
}

impl From<Error> for ReaderError {
    fn from(error: Error) -> Self {
        if is_denied(&error) { Self::Denied(describe(&error)) } else { Self::Server(describe(&error)) }
    }
}

/// Makes `role` where it is missing, gives it `password` where there is one, and the rights of a reader of this output.
/// A second time changes nothing but the password. The output's tables and views have to be there.
///
/// # Errors
/// See [`ReaderError`]; all or nothing is done.
pub async fn set_up_reader(
    options: &PostgresOptions,
    role: &str,
    password: Option<&ReaderPassword>,
) -> Result<ReaderAccess, ReaderError> {
    let connector = options.connector()?;
    if role.len() > ROLE_BYTES_MAX || check_schema(role).is_err() {
        return Err(ReaderError::Role(role.to_owned()));
    }
    let setting_up = async {
        let mut client = connector.connect().await?;
        client.batch_execute(&options.session_settings()).await?;
        check_views(&client, options).await?;
        let transaction = client.transaction().await?;
        make_role(&transaction, role, password).await?;
        let access = grant(&transaction, options, role).await?;
        transaction.commit().await?;
        Ok(access)
    };
    let deadline = options.timeouts.connect + options.timeouts.statement;
    timeout(deadline, setting_up).await.unwrap_or_else(|_| Err(ReaderError::Server("no answer in time".to_owned())))
}

async fn check_views(client: &Client, options: &PostgresOptions) -> Result<(), ReaderError> {
    let marked = "SELECT count(*) FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid \
                  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                  WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'v' AND a.attname = $3";
    for view in ddl::tables(options.layout) {
        let marker: &str = if ["tasks", "messages"].contains(view) { options.layout.marker() } else { "task_id" };
        let found: i64 = client.query_one(marked, &[&options.reader_schema, view, &marker]).await?.get(0);
        if found == 0 {
            let (schema, layout) = (options.reader_schema.clone(), options.layout.name());
            return Err(ReaderError::NoViews { schema, view, layout });
        }
    }
    Ok(())
}

async fn make_role(
    transaction: &Transaction<'_>,
    role: &str,
    password: Option<&ReaderPassword>,
) -> Result<(), ReaderError> {
    let known = "SELECT rolsuper, rolname = current_user OR rolname = session_user, \
                 EXISTS (SELECT 1 FROM pg_catalog.pg_class AS c WHERE c.relowner = r.oid AND c.relname = 'lockstep_cursor') \
                 FROM pg_catalog.pg_roles AS r WHERE rolname = $1";
    let unfit = |reason| Err(ReaderError::Unfit { role: role.to_owned(), reason });
    match transaction.query_opt(known, &[&role]).await? {
        Some(row) if row.get(0) => return unfit("is a superuser"),
        Some(row) if row.get(1) => return unfit("is the one of this connection"),
        Some(row) if row.get(2) => return unfit("owns an output's tables"),
        Some(_) => transaction.batch_execute(&format!("ALTER ROLE \"{role}\" LOGIN")).await?,
        None => transaction.batch_execute(&format!("CREATE ROLE \"{role}\" LOGIN")).await?,
    }
    if let Some(ReaderPassword(password)) = password {
        // A statement would stand in the server's log as it is, so it has the verifier instead; that needs no quoting.
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        transaction.batch_execute(&format!("ALTER ROLE \"{role}\" PASSWORD '{verifier}'")).await?;
    }
    Ok(())
}

async fn grant(
    transaction: &Transaction<'_>,
    options: &PostgresOptions,
    role: &str,
) -> Result<ReaderAccess, ReaderError> {
    let (reader, own) = (&options.reader_schema, format!("{role}{OWN_SUFFIX}"));
    let names = "SELECT current_database()::text, quote_ident(current_database()), \
                 has_database_privilege($1, current_database(), 'CONNECT')";
    let row = transaction.query_one(names, &[&role]).await?;
    let (database, quoted): (String, String) = (row.get(0), row.get(1));
    if !row.get::<_, bool>(2) {
        transaction.batch_execute(&format!("GRANT CONNECT ON DATABASE {quoted} TO \"{role}\"")).await?;
    }
    let is_there = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1)";
    if !transaction.query_one(is_there, &[&own]).await?.get::<_, bool>(0) {
        transaction.batch_execute(&format!("CREATE SCHEMA \"{own}\"")).await?;
    }
    let views = ddl::tables(options.layout);
    let list: Vec<String> = views.iter().map(|view| format!("\"{reader}\".\"{view}\"")).collect();
    transaction
        .batch_execute(&format!(
            "GRANT USAGE, CREATE ON SCHEMA \"{own}\" TO \"{role}\"; \
             GRANT USAGE ON SCHEMA \"{reader}\" TO \"{role}\"; \
             GRANT SELECT ON {} TO \"{role}\"; \
             ALTER ROLE \"{role}\" IN DATABASE {quoted} SET search_path = \"{own}\", \"{reader}\"",
            list.join(", ")
        ))
        .await?;
    let (role, reader_schema, views) = (role.to_owned(), reader.clone(), views.to_vec());
    Ok(ReaderAccess { role, database, own_schema: own, reader_schema, views })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line_and_never_shown() {
        for bad in ["", "a\nb", "a\0b", &"a".repeat(PASSWORD_BYTES_MAX + 1)] {
            assert!(ReaderPassword::new(bad).is_none());
        }
        let password = ReaderPassword::new("hunter2").unwrap();
        assert!(!format!("{password:?}").contains("hunter2"));
    }
}
