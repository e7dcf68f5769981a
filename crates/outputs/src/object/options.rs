//! Where an object store is, and how it is reached.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

/// How often a request is repeated at once; the publisher comes again by itself.
const RETRIES_MAX: usize = 2;
/// For how long.
const RETRY_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest file of credentials, in bytes.
pub const CREDENTIALS_BYTES_MAX: usize = 64 << 10;

/// Why a store cannot be opened. Never repeats a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectOptionsError {
    /// Of another kind.
    #[error("write `url` as s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:prefix")]
    Url,
    /// The prefix cannot be one.
    #[error("the prefix in `url` is none: {0}")]
    Prefix(String),
    /// A line of the credentials.
    #[error("line {0} of the credentials is not NAME=VALUE with a name that the store's own programs use")]
    Credentials(usize),
    /// The store's client.
    #[error("the store cannot be set up: {0}")]
    Client(String),
}

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
pub struct ObjectOptions {
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `file:path`.
    pub url: String,
    /// Names and values, one a line, as the store's own programs read them from the environment, such as
    /// `AWS_ACCESS_KEY_ID=…`.
    pub credentials: String,
    /// What a path of `file:` is relative to.
    pub base: PathBuf,
    /// How long one request may take, in whole seconds.
    pub timeout: Duration,
}

impl fmt::Debug for ObjectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectOptions").field("url", &self.url).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// An open store.
pub(super) struct Place {
    pub store: Arc<dyn ObjectStore>,
    pub prefix: Path,
    /// Whether lists are in the order of names.
    pub is_sorted: bool,
}

impl ObjectOptions {
    /// The usual limits.
    pub fn new(url: impl Into<String>, credentials: impl Into<String>) -> Self {
        let timeout = Duration::from_secs(30);
        Self { url: url.into(), credentials: credentials.into(), base: PathBuf::from("."), timeout }
    }

    /// Opens it. Nothing is connected yet.
    pub(super) fn open(&self) -> Result<Place, ObjectOptionsError> {
        if let Some(path) = self.url.strip_prefix("file:") {
            return self.open_directory(path.strip_prefix("//").unwrap_or(path));
        }
        let (scheme, rest) = self.url.split_once("://").ok_or(ObjectOptionsError::Url)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(ObjectOptionsError::Url);
        }
        let prefix = Path::parse(prefix).map_err(|e| ObjectOptionsError::Prefix(e.to_string()))?;
        let store: Arc<dyn ObjectStore> = match scheme {
            "s3" => {
                let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_retry(retry());
                for (line, name, value) in self.settings() {
                    builder = builder.with_config(name.parse::<AmazonS3ConfigKey>().map_err(|_| line)?, value);
                }
                Arc::new(builder.build().map_err(client)?)
            }
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket).with_retry(retry());
                for (line, name, value) in self.settings() {
                    builder = builder.with_config(name.parse::<GoogleConfigKey>().map_err(|_| line)?, value);
                }
                Arc::new(builder.build().map_err(client)?)
            }
            "az" => {
                let mut builder = MicrosoftAzureBuilder::new().with_container_name(bucket).with_retry(retry());
                for (line, name, value) in self.settings() {
                    builder = builder.with_config(name.parse::<AzureConfigKey>().map_err(|_| line)?, value);
                }
                Arc::new(builder.build().map_err(client)?)
            }
            _ => return Err(ObjectOptionsError::Url),
        };
        Ok(Place { store, prefix, is_sorted: true })
    }

    fn open_directory(&self, path: &str) -> Result<Place, ObjectOptionsError> {
        let path = self.base.join(path);
        std::fs::create_dir_all(&path).map_err(|e| ObjectOptionsError::Client(e.to_string()))?;
        // A receipt promises that the blobs survive a power loss.
        let store = LocalFileSystem::new_with_prefix(path).map_err(client)?.with_fsync(true);
        Ok(Place { store: Arc::new(store), prefix: Path::default(), is_sorted: false })
    }

    /// Names and values with the error that their line has where the name is none.
    fn settings(&self) -> impl Iterator<Item = (ObjectOptionsError, String, String)> {
        let lines = self.credentials.lines().enumerate();
        let lines = lines.map(|(at, line)| (at + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let given = lines.map(|(at, line)| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            let name = name.strip_prefix("export ").unwrap_or(name).trim().to_ascii_lowercase();
            (ObjectOptionsError::Credentials(at), name, value.trim().to_owned())
        });
        let timeout = format!("{} seconds", self.timeout.as_secs().max(1));
        let own = [(ClientConfigKey::Timeout, timeout), (ClientConfigKey::ConnectTimeout, "10 seconds".to_owned())];
        let own = own.map(|(key, value)| (ObjectOptionsError::Url, key.as_ref().to_owned(), value));
        given.chain(own).collect::<Vec<_>>().into_iter()
    }
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIME_MAX, ..RetryConfig::default() }
}

fn client(error: object_store::Error) -> ObjectOptionsError {
    ObjectOptionsError::Client(super::error::reason(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str, credentials: &str) -> Option<ObjectOptionsError> {
        ObjectOptions::new(url, credentials).open().err()
    }

    #[test]
    fn mistakes_are_named_and_credentials_are_never_shown() {
        let keys = "# ours\nAWS_ACCESS_KEY_ID=AKIA\nexport AWS_SECRET_ACCESS_KEY=topsecret\nAWS_REGION=eu-west-1\n";
        assert_eq!(error("s3://tasks/a/b", keys), None);
        assert_eq!(
            error("s3://tasks", &keys.replace("# ours", "AWS_ACCES_KEY=x")),
            Some(ObjectOptionsError::Credentials(1))
        );
        for url in ["tasks", "s3:///x", "ftp://x/y", "s3://"] {
            assert_eq!(error(url, ""), Some(ObjectOptionsError::Url), "{url}");
        }
        assert!(matches!(error("s3://tasks/a//b", keys), Some(ObjectOptionsError::Prefix(_))));
        let shown = format!("{:?}", ObjectOptions::new("s3://tasks", keys));
        assert!(!shown.contains("topsecret"), "{shown}");
    }
}
