//! Outputs that are stores of blobs: how they stand in config.toml, and how they are opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_outputs::object::CREDENTIALS_BYTES_MAX;
use lockstep_outputs::{
    AltDaMode, AltDaOptions, AltDaOutput, CelestiaOptions, CelestiaOutput, NatsOptions, NatsOptionsError, NatsOutput,
    ObjectOptions, ObjectOutput, Output, Owner,
};
use serde::{Deserialize, Serialize};

use crate::error::NodeError;

/// Millionths of utia in one.
const MICRO: f64 = 1_000_000.0;

/// Where a store of blobs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobKind {
    /// An object store.
    Object {
        /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `file:path`.
        url: String,
        /// A file with the credentials, so that this one holds no secret.
        credentials_file: Option<PathBuf>,
    },
    /// An alt-DA server.
    AltDa {
        /// A file with its URL, which may hold a secret.
        url_file: PathBuf,
        /// Who makes the commitment.
        mode: Mode,
    },
    /// Celestia.
    Celestia {
        /// A file with the URL of a node.
        url_file: PathBuf,
        /// A file with the node's token.
        token_file: Option<PathBuf>,
        /// 20 hex digits.
        namespace: String,
        /// Price of gas in millionths of utia; none: the node chooses.
        gas_price_microutia: Option<u64>,
    },
    /// A NATS JetStream stream.
    Nats {
        /// A file with the URLs of servers, which may hold a secret.
        url_file: PathBuf,
        /// The stream's name.
        stream: String,
        /// What its subjects begin with.
        subject: String,
        /// Copies of each message, where the stream is made.
        replicas: usize,
        /// A file with a user's JWT and seed.
        credentials_file: Option<PathBuf>,
        /// A file with certificates of those who vouch for the servers.
        ca_file: Option<PathBuf>,
    },
}

/// Who makes the commitment of an alt-DA server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is a hash.
    Keccak,
    /// The server.
    Generic,
}

/// The settings of all of these kinds, as they stand in the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct BlobSettings {
    pub url: Option<String>,
    pub credentials_file: Option<PathBuf>,
    pub url_file: Option<PathBuf>,
    pub mode: Option<Mode>,
    pub token_file: Option<PathBuf>,
    pub namespace: Option<String>,
    pub gas_price_microutia: Option<u64>,
    pub stream: Option<String>,
    pub subject: Option<String>,
    pub replicas: Option<usize>,
    pub ca_file: Option<PathBuf>,
}

/// The kinds by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlobKindName {
    Object,
    AltDa,
    Celestia,
    Nats,
}

impl BlobKind {
    /// From the settings of one output.
    ///
    /// # Errors
    /// Which settings the kind takes.
    pub(crate) fn read(kind: BlobKindName, settings: BlobSettings) -> Result<Self, &'static str> {
        let mut rest = settings;
        let (kind, takes) = match kind {
            BlobKindName::Object => {
                let url = rest.url.take();
                let credentials_file = rest.credentials_file.take();
                let kind = url.map(|url| Self::Object { url, credentials_file });
                (kind, "kind object takes `url` and, if need be, `credentials_file`")
            }
            BlobKindName::AltDa => {
                let kind = rest.url_file.take().zip(rest.mode.take());
                let kind = kind.map(|(url_file, mode)| Self::AltDa { url_file, mode });
                (kind, "kind altda takes `url_file` and `mode` (keccak or generic)")
            }
            BlobKindName::Celestia => {
                let given = rest.url_file.take().zip(rest.namespace.take());
                let (token_file, gas_price_microutia) = (rest.token_file.take(), rest.gas_price_microutia.take());
                let kind = given.map(|(url_file, namespace)| Self::Celestia {
                    url_file,
                    token_file,
                    namespace,
                    gas_price_microutia,
                });
                let takes = "kind celestia takes `url_file`, `namespace` and, if need be, `token_file` and `gas_price_microutia`";
                (kind, takes)
            }
            BlobKindName::Nats => {
                let usual = NatsOptions::new("");
                let (stream, subject) = (rest.stream.take(), rest.subject.take());
                let (replicas, credentials_file) = (rest.replicas.take(), rest.credentials_file.take());
                let ca_file = rest.ca_file.take();
                let kind = rest.url_file.take().map(|url_file| Self::Nats {
                    url_file,
                    stream: stream.unwrap_or(usual.stream),
                    subject: subject.unwrap_or(usual.subject),
                    replicas: replicas.unwrap_or(usual.replicas),
                    credentials_file,
                    ca_file,
                });
                let takes = "kind nats takes `url_file` and, if need be, `stream`, `subject`, `replicas`, `credentials_file` and `ca_file`";
                (kind, takes)
            }
        };
        // What is left is of another kind.
        kind.filter(|_| rest == BlobSettings::default()).ok_or(takes)
    }

    /// The settings again.
    pub(crate) fn settings(self) -> (BlobKindName, BlobSettings) {
        let none = BlobSettings::default();
        match self {
            Self::Object { url, credentials_file } => {
                (BlobKindName::Object, BlobSettings { url: Some(url), credentials_file, ..none })
            }
            Self::AltDa { url_file, mode } => {
                (BlobKindName::AltDa, BlobSettings { url_file: Some(url_file), mode: Some(mode), ..none })
            }
            Self::Celestia { url_file, token_file, namespace, gas_price_microutia } => {
                let (url_file, namespace) = (Some(url_file), Some(namespace));
                (BlobKindName::Celestia, BlobSettings { url_file, token_file, namespace, gas_price_microutia, ..none })
            }
            Self::Nats { url_file, stream, subject, replicas, credentials_file, ca_file } => {
                let (url_file, stream, subject) = (Some(url_file), Some(stream), Some(subject));
                let replicas = Some(replicas);
                let settings = BlobSettings { url_file, stream, subject, replicas, credentials_file, ca_file, ..none };
                (BlobKindName::Nats, settings)
            }
        }
    }

    /// Opens the store. Nothing is connected yet. `home` is what paths are relative to.
    ///
    /// # Errors
    /// Which setting or file is wrong. Never repeats a secret.
    pub(crate) fn open(&self, home: &Path, owner: Owner) -> Result<Arc<dyn Output>, NodeError> {
        let read = |file: &PathBuf| {
            let path = home.join(file);
            let wrong = |reason: String| NodeError::Config(format!("{}: {reason}", path.display()));
            let size = std::fs::metadata(&path).map_err(|e| wrong(e.to_string()))?.len();
            if size > CREDENTIALS_BYTES_MAX as u64 {
                return Err(wrong(format!("it has {size} bytes, at most {CREDENTIALS_BYTES_MAX} are read")));
            }
            let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
            Ok(text.trim().to_owned())
        };
        let of = |file: &Path, e: &dyn std::fmt::Display| NodeError::Config(format!("{}: {e}", file.display()));
        let said = |e: &dyn std::fmt::Display| NodeError::Config(e.to_string());
        match self {
            Self::Object { url, credentials_file } => {
                let credentials = credentials_file.as_ref().map(read).transpose()?.unwrap_or_default();
                let options = ObjectOptions { base: home.to_owned(), ..ObjectOptions::new(url, credentials) };
                Ok(Arc::new(ObjectOutput::new(&options, owner).map_err(|e| said(&e))?))
            }
            Self::AltDa { url_file, mode } => {
                let endpoint = read(url_file)?.parse().map_err(|e| of(url_file, &e))?;
                let mode = match mode {
                    Mode::Keccak => AltDaMode::Keccak,
                    Mode::Generic => AltDaMode::Generic,
                };
                let options = AltDaOptions::new(endpoint, mode);
                Ok(Arc::new(AltDaOutput::new(options, owner).map_err(|e| said(&e))?))
            }
            Self::Celestia { url_file, token_file, namespace, gas_price_microutia } => {
                let endpoint = read(url_file)?.parse().map_err(|e| of(url_file, &e))?;
                let namespace = namespace.parse().map_err(|e| said(&e))?;
                let options = CelestiaOptions {
                    token: token_file.as_ref().map(read).transpose()?,
                    gas_price: gas_price_microutia.map(|price| price as f64 / MICRO),
                    ..CelestiaOptions::new(endpoint, namespace)
                };
                Ok(Arc::new(CelestiaOutput::new(options, owner).map_err(|e| said(&e))?))
            }
            Self::Nats { url_file, stream, subject, replicas, credentials_file, ca_file } => {
                let options = NatsOptions {
                    stream: stream.clone(),
                    subject: subject.clone(),
                    replicas: *replicas,
                    credentials: credentials_file.as_ref().map(read).transpose()?,
                    ca_file: ca_file.as_ref().map(|file| home.join(file)),
                    ..NatsOptions::new(read(url_file)?)
                };
                let wrong = match NatsOutput::new(&options, owner) {
                    Ok(output) => return Ok(Arc::new(output)),
                    Err(e @ NatsOptionsError::Url) => of(url_file, &e),
                    Err(e) => said(&e),
                };
                Err(wrong)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Epoch, NetworkId, TaskNumber};

    use super::*;

    fn settings() -> BlobSettings {
        BlobSettings { url: Some("file:blobs".into()), ..BlobSettings::default() }
    }

    #[test]
    fn a_setting_of_another_kind_is_refused_and_what_is_taken_comes_back() {
        assert!(BlobKind::read(BlobKindName::Object, settings()).is_ok());
        assert!(BlobKind::read(BlobKindName::AltDa, settings()).is_err());
        assert!(BlobKind::read(BlobKindName::Celestia, settings()).is_err());
        let mixed = BlobSettings { namespace: Some("00".into()), ..settings() };
        assert!(BlobKind::read(BlobKindName::Object, mixed).is_err());
        let celestia = BlobSettings {
            url_file: Some("celestia.url".into()),
            namespace: Some("000008e5f679bf7116cb".into()),
            gas_price_microutia: Some(2_000),
            ..BlobSettings::default()
        };
        let nats = BlobSettings {
            url_file: Some("nats.url".into()),
            stream: Some("TASKS".into()),
            subject: Some("tasks".into()),
            replicas: Some(5),
            credentials_file: Some("nats.creds".into()),
            ca_file: Some("nats-ca.pem".into()),
            ..BlobSettings::default()
        };
        assert!(BlobKind::read(BlobKindName::Nats, BlobSettings { url_file: None, ..nats.clone() }).is_err());
        let mixed = BlobSettings { stream: Some("TASKS".into()), ..celestia.clone() };
        assert!(BlobKind::read(BlobKindName::Celestia, mixed).is_err());
        let few = BlobSettings { url_file: nats.url_file.clone(), ..BlobSettings::default() };
        let usual = BlobKind::read(BlobKindName::Nats, few).unwrap().settings().1;
        assert_eq!(
            (usual.stream.as_deref(), usual.subject.as_deref(), usual.replicas),
            (Some("LOCKSTEP"), Some("lockstep"), Some(3))
        );
        for (name, settings) in
            [(BlobKindName::Object, settings()), (BlobKindName::Celestia, celestia), (BlobKindName::Nats, nats)]
        {
            assert_eq!(BlobKind::read(name, settings.clone()).unwrap().settings(), (name, settings));
        }
    }

    #[test]
    fn files_are_read_and_mistakes_in_them_named_without_what_is_in_them() {
        let home = tempfile::tempdir().unwrap();
        let owner = Owner { network: NetworkId([1; 32]), epoch: Epoch(0), first_task_number: TaskNumber(1) };
        let kind = BlobKind::AltDa { url_file: "da.url".into(), mode: Mode::Keccak };
        let error = |kind: &BlobKind| kind.open(home.path(), owner).err().unwrap().to_string();
        assert!(error(&kind).contains("da.url"));
        std::fs::write(home.path().join("da.url"), "topsecret-and-no-url").unwrap();
        assert!(error(&kind).contains("da.url") && !error(&kind).contains("topsecret"));
        std::fs::write(home.path().join("da.url"), "http://127.0.0.1:3100/\n").unwrap();
        assert!(kind.open(home.path(), owner).is_ok());
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
        assert!(BlobKind::Object { url: "file:blobs".into(), credentials_file: None }.open(home.path(), owner).is_ok());
        assert!(home.path().join("blobs").is_dir());
    }
}
