//! A document with the files that it needs, as it is signed, sent and stored (docs/formats.md, "Rules of projects").

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_types::hash::keccak256;
use lockstep_types::{Hash32, proto};
use prost::Message as _;

use crate::document::Document;
use crate::error::RulesError;
use crate::limits::{BUNDLE_BYTES_MAX, FILE_NAME_BYTES_MAX, FILES_MAX};

const RULES_DOMAIN: &[u8] = b"lockstep/rules/v1";
/// Version of the bundle's encoding.
pub const BUNDLE_VERSION: u32 = 1;

/// A document with its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The text of the document.
    pub document: String,
    /// Its files, by name.
    pub files: BTreeMap<String, Bytes>,
}

impl Bundle {
    /// Puts a document together with its files.
    ///
    /// # Errors
    /// The document is wrong, or something is too large.
    pub fn collect<E>(
        document: String,
        mut read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<Result<Self, E>, RulesError> {
        let mut files = BTreeMap::new();
        for name in Document::parse(&document)?.files() {
            match read(name) {
                Ok(content) => drop(files.insert(name.to_owned(), Bytes::from(content))),
                Err(error) => return Ok(Err(error)),
            }
        }
        let bundle = Self { document, files };
        bundle.check()?;
        Ok(Ok(bundle))
    }

    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let file =
            |(name, content): (&String, &Bytes)| proto::RulesFile { name: name.clone(), content: content.clone() };
        let files = self.files.iter().map(file).collect();
        proto::RulesBundle { version: BUNDLE_VERSION, document: self.document.clone(), files }.encode_to_vec()
    }

    /// Reads the encoding; nothing of it is checked but its form and its limits.
    ///
    /// # Errors
    /// It is malformed, too large, or not as this program would encode it.
    pub fn decode(encoded: Bytes) -> Result<Self, RulesError> {
        let bad = |reason: &str| RulesError::Bundle(reason.to_owned());
        if encoded.len() > BUNDLE_BYTES_MAX {
            return Err(RulesError::TooLarge { what: "the bundle of rules", bytes_max: BUNDLE_BYTES_MAX });
        }
        let read = proto::RulesBundle::decode(encoded.clone()).map_err(|e| bad(&e.to_string()))?;
        if read.version != BUNDLE_VERSION {
            return Err(bad("it is of another version"));
        }
        let files = read.files.into_iter().map(|file| (file.name, file.content)).collect();
        let bundle = Self { document: read.document, files };
        bundle.check()?;
        // One bundle has one hash.
        if bundle.encode() != encoded {
            return Err(bad("it is not in its one form"));
        }
        Ok(bundle)
    }

    /// What names it.
    pub fn hash(&self) -> Hash32 {
        hash_of(&self.encode())
    }

    fn check(&self) -> Result<(), RulesError> {
        let bad = |reason: &str| Err(RulesError::Bundle(reason.to_owned()));
        if self.files.len() > FILES_MAX {
            return bad("it has too many files");
        }
        if self.files.keys().any(|name| name.is_empty() || name.len() > FILE_NAME_BYTES_MAX) {
            return bad("a file has no name, or a very long one");
        }
        let bytes: usize = self.files.values().map(Bytes::len).sum();
        if bytes + self.document.len() > BUNDLE_BYTES_MAX {
            return Err(RulesError::TooLarge { what: "the bundle of rules", bytes_max: BUNDLE_BYTES_MAX });
        }
        Ok(())
    }
}

/// The hash of an encoded bundle.
pub fn hash_of(encoded: &[u8]) -> Hash32 {
    keccak256(&[RULES_DOMAIN, encoded])
}
