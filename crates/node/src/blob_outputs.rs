//! Outputs that are stores of blobs, as they stand in config.toml.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where NATS outputs put tasks if config.toml does not say it.
const NATS_STREAM: &str = "LOCKSTEP";
const NATS_SUBJECT: &str = "lockstep";
/// Copies of each message there.
const NATS_REPLICAS: usize = 3;

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
    /// Its name, which is that of its feature.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Object { .. } => "object",
            Self::AltDa { .. } => "altda",
            Self::Celestia { .. } => "celestia",
            Self::Nats { .. } => "nats",
        }
    }

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
                let (stream, subject) = (rest.stream.take(), rest.subject.take());
                let (replicas, credentials_file) = (rest.replicas.take(), rest.credentials_file.take());
                let ca_file = rest.ca_file.take();
                let kind = rest.url_file.take().map(|url_file| Self::Nats {
                    url_file,
                    stream: stream.unwrap_or_else(|| NATS_STREAM.to_owned()),
                    subject: subject.unwrap_or_else(|| NATS_SUBJECT.to_owned()),
                    replicas: replicas.unwrap_or(NATS_REPLICAS),
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
}

#[cfg(test)]
mod tests {
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
}
