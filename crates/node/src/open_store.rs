//! Opens the stores that config.toml names, each where this program was built with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_outputs::{Output, Owner};

use crate::blob_outputs::BlobKind;
#[cfg(feature = "altda")]
use crate::blob_outputs::Mode;
use crate::config::{OutputConfig, OutputKind};
use crate::error::NodeError;
use crate::features::left_out;

/// Longest file with a secret that is read, in bytes.
const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;
/// Millionths of utia in one.
#[cfg(feature = "celestia")]
const MICRO: f64 = 1_000_000.0;

/// Opens the store that a configuration names. Nothing is connected yet.
///
/// # Errors
/// Which setting or file is wrong, or that the program was built without it. Never repeats a secret.
pub(crate) fn open(config: &OutputConfig, home: &Path, owner: Owner) -> Result<Arc<dyn Output>, NodeError> {
    open_kind(&config.kind, home, owner).map_err(|error| match error {
        NodeError::Config(reason) => NodeError::Config(format!("output {}: {reason}", config.name)),
        error => error,
    })
}

/// Reads a small file, such as one with a secret. `file` is relative to `home`.
///
/// # Errors
/// With its path, and never with what is in it.
pub(crate) fn read_small(home: &Path, file: &Path) -> Result<String, NodeError> {
    let path = home.join(file);
    let wrong = |reason: String| NodeError::Config(format!("{}: {reason}", path.display()));
    let size = std::fs::metadata(&path).map_err(|e| wrong(e.to_string()))?.len();
    if size > SECRET_FILE_BYTES_MAX {
        return Err(wrong(format!("it has {size} bytes, at most {SECRET_FILE_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
    Ok(text.trim().to_owned())
}

#[allow(unused_variables, reason = "each store is a feature")]
fn open_kind(kind: &OutputKind, home: &Path, owner: Owner) -> Result<Arc<dyn Output>, NodeError> {
    match kind {
        #[cfg(feature = "sqlite")]
        OutputKind::Sqlite { path, layout } => {
            use lockstep_outputs::{SqliteOptions, SqliteOutput};
            let options = SqliteOptions { layout: *layout, ..SqliteOptions::new(home.join(path)) };
            Ok(Arc::new(SqliteOutput::new(options, owner)))
        }
        #[cfg(feature = "postgres")]
        OutputKind::Postgres { dsn_file, .. } => {
            let options = postgres_options(kind, home, dsn_file)?;
            Ok(Arc::new(lockstep_outputs::PostgresOutput::new(options, owner).map_err(|e| wrong(&e))?))
        }
        OutputKind::Blobs(kind) => open_blobs(kind, home, owner),
        #[allow(unreachable_patterns, reason = "not with all features")]
        other => Err(NodeError::Config(left_out(other.name()))),
    }
}

/// How to reach an output in PostgreSQL, by its own connection string or another one.
///
/// # Errors
/// If it is another kind, or the file cannot be read.
#[cfg(feature = "postgres")]
pub(crate) fn postgres_options(
    kind: &OutputKind,
    home: &Path,
    dsn_file: &Path,
) -> Result<lockstep_outputs::PostgresOptions, NodeError> {
    use lockstep_outputs::PostgresOptions;
    let OutputKind::Postgres { schema, layout, ca_file, .. } = kind else {
        return Err(wrong(&"it is not in PostgreSQL, and only that has roles"));
    };
    let dsn = read_small(home, dsn_file)?;
    let ca_file = ca_file.as_ref().map(|file| home.join(file));
    Ok(PostgresOptions { layout: *layout, ca_file, ..PostgresOptions::in_schema(dsn, schema) })
}

#[allow(unused_variables, reason = "each store is a feature")]
fn open_blobs(kind: &BlobKind, home: &Path, owner: Owner) -> Result<Arc<dyn Output>, NodeError> {
    let read = |file: &PathBuf| read_small(home, file);
    match kind {
        #[cfg(feature = "object")]
        BlobKind::Object { url, credentials_file } => {
            use lockstep_outputs::{ObjectOptions, ObjectOutput};
            let credentials = credentials_file.as_ref().map(read).transpose()?.unwrap_or_default();
            let options = ObjectOptions { base: home.to_owned(), ..ObjectOptions::new(url, credentials) };
            Ok(Arc::new(ObjectOutput::new(&options, owner).map_err(|e| wrong(&e))?))
        }
        #[cfg(feature = "altda")]
        BlobKind::AltDa { url_file, mode } => {
            use lockstep_outputs::{AltDaMode, AltDaOptions, AltDaOutput};
            let endpoint = read(url_file)?.parse().map_err(|e| wrong_in(url_file, &e))?;
            let mode = match mode {
                Mode::Keccak => AltDaMode::Keccak,
                Mode::Generic => AltDaMode::Generic,
            };
            let options = AltDaOptions::new(endpoint, mode);
            Ok(Arc::new(AltDaOutput::new(options, owner).map_err(|e| wrong(&e))?))
        }
        #[cfg(feature = "celestia")]
        BlobKind::Celestia { url_file, token_file, namespace, gas_price_microutia } => {
            use lockstep_outputs::{CelestiaOptions, CelestiaOutput};
            let endpoint = read(url_file)?.parse().map_err(|e| wrong_in(url_file, &e))?;
            let namespace = namespace.parse().map_err(|e| wrong(&e))?;
            let options = CelestiaOptions {
                token: token_file.as_ref().map(read).transpose()?,
                gas_price: gas_price_microutia.map(|price| price as f64 / MICRO),
                ..CelestiaOptions::new(endpoint, namespace)
            };
            Ok(Arc::new(CelestiaOutput::new(options, owner).map_err(|e| wrong(&e))?))
        }
        #[cfg(feature = "nats")]
        BlobKind::Nats { url_file, stream, subject, replicas, credentials_file, ca_file } => {
            use lockstep_outputs::{NatsOptions, NatsOptionsError, NatsOutput};
            let options = NatsOptions {
                stream: stream.clone(),
                subject: subject.clone(),
                replicas: *replicas,
                credentials: credentials_file.as_ref().map(read).transpose()?,
                ca_file: ca_file.as_ref().map(|file| home.join(file)),
                ..NatsOptions::new(read(url_file)?)
            };
            match NatsOutput::new(&options, owner) {
                Ok(output) => Ok(Arc::new(output)),
                Err(e @ NatsOptionsError::Url) => Err(wrong_in(url_file, &e)),
                Err(e) => Err(wrong(&e)),
            }
        }
        #[allow(unreachable_patterns, reason = "not with all features")]
        other => Err(NodeError::Config(left_out(other.name()))),
    }
}

#[allow(dead_code, reason = "each store is a feature")]
fn wrong(error: &dyn std::fmt::Display) -> NodeError {
    NodeError::Config(error.to_string())
}

#[allow(dead_code, reason = "each store is a feature")]
fn wrong_in(file: &Path, error: &dyn std::fmt::Display) -> NodeError {
    NodeError::Config(format!("{}: {error}", file.display()))
}

#[cfg(all(test, feature = "object", feature = "altda", feature = "nats"))]
mod tests {
    use lockstep_types::{Epoch, NetworkId, TaskNumber};

    use super::*;

    #[test]
    fn files_are_read_and_mistakes_in_them_named_without_what_is_in_them() {
        let home = tempfile::tempdir().unwrap();
        let owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(0), first_task_number: TaskNumber(1) };
        let kind = BlobKind::AltDa { url_file: "da.url".into(), mode: Mode::Keccak };
        let error = |kind: &BlobKind| open_blobs(kind, home.path(), owner).err().unwrap().to_string();
        assert!(error(&kind).contains("da.url"));
        std::fs::write(home.path().join("da.url"), "topsecret-and-no-url").unwrap();
        assert!(error(&kind).contains("da.url") && !error(&kind).contains("topsecret"));
        std::fs::write(home.path().join("da.url"), "http://127.0.0.1:3100/\n").unwrap();
        assert!(open_blobs(&kind, home.path(), owner).is_ok());
        let nats = |credentials_file: Option<&str>| BlobKind::Nats {
            url_file: "nats.url".into(),
            stream: "LOCKSTEP".into(),
            subject: "lockstep".into(),
            replicas: 3,
            credentials_file: credentials_file.map(Into::into),
            ca_file: None,
        };
        std::fs::write(home.path().join("nats.url"), "nats://user:topsecret@\n").unwrap();
        assert!(error(&nats(None)).contains("nats.url") && !error(&nats(None)).contains("topsecret"));
        std::fs::write(home.path().join("nats.url"), "nats://user:topsecret@a:4222\nnats://b:4222\n").unwrap();
        std::fs::write(home.path().join("nats.creds"), "topsecret").unwrap();
        let wrong = error(&nats(Some("nats.creds")));
        assert!(wrong.contains("credentials") && !wrong.contains("topsecret"), "{wrong}");
        assert!(
            open_blobs(&BlobKind::Object { url: "file:blobs".into(), credentials_file: None }, home.path(), owner)
                .is_ok()
        );
        assert!(home.path().join("blobs").is_dir());
    }
}
