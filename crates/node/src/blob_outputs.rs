//! Outputs that are stores of blobs: how they stand in config.toml, and how they are opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_outputs::object::CREDENTIALS_BYTES_MAX;
use lockstep_outputs::{
    AltDaMode, AltDaOptions, AltDaOutput, CelestiaOptions, CelestiaOutput, ObjectOptions, ObjectOutput, Output, Owner,
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
}

/// The kinds by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlobKindName {
    Object,
    AltDa,
    Celestia,
}

impl BlobKind {
    /// From the settings of one output.
    ///
    /// # Errors
    /// Which settings the kind takes.
    pub(crate) fn read(kind: BlobKindName, settings: BlobSettings) -> Result<Self, &'static str> {
        let BlobSettings { url, credentials_file, url_file, mode, token_file, namespace, gas_price_microutia } =
            settings;
        match kind {
            BlobKindName::Object => match (url, url_file, mode, token_file, namespace, gas_price_microutia) {
                (Some(url), None, None, None, None, None) => Ok(Self::Object { url, credentials_file }),
                _ => Err("kind object takes `url` and, if need be, `credentials_file`"),
            },
            BlobKindName::AltDa => {
                match (url_file, mode, url, credentials_file, token_file, namespace, gas_price_microutia) {
                    (Some(url_file), Some(mode), None, None, None, None, None) => Ok(Self::AltDa { url_file, mode }),
                    _ => Err("kind altda takes `url_file` and `mode` (keccak or generic)"),
                }
            }
            BlobKindName::Celestia => match (url_file, namespace, url, credentials_file, mode) {
                (Some(url_file), Some(namespace), None, None, None) => {
                    Ok(Self::Celestia { url_file, token_file, namespace, gas_price_microutia })
                }
                _ => Err(
                    "kind celestia takes `url_file`, `namespace` and, if need be, `token_file` and `gas_price_microutia`",
                ),
            },
        }
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
        for (name, settings) in [(BlobKindName::Object, settings()), (BlobKindName::Celestia, celestia)] {
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
        assert!(BlobKind::Object { url: "file:blobs".into(), credentials_file: None }.open(home.path(), owner).is_ok());
        assert!(home.path().join("blobs").is_dir());
    }
}
