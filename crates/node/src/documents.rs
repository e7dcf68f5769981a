//! Devices' DID documents: those that the log has, and those that it has an address and a hash of.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use lockstep_consensus::{NotDone, ReadError, StateStore};
use lockstep_ledger::{Document, History as _};
use lockstep_types::{Address, Hash32};
use parking_lot::Mutex;

use crate::chain::{FetchError, Gateway};
use crate::limits::DOCUMENTS_BYTES_MAX;
use crate::proofs;

/// Why a document that should be there is not.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// The chain has an address only, and this node was not told whom to ask.
    #[error("this node fetches no documents: its config.toml names no gateway in the section [chain]")]
    NoGateway,
    /// The chain has a hash only.
    #[error("the registry has no usable URI for the device")]
    NoUri,
    /// The gateway does not give it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is no text.
    #[error("the device's document is not UTF-8")]
    NotText,
    /// The state cannot be read: an operator has to look.
    #[error("the state cannot be read: {0}")]
    State(#[from] ReadError),
    /// Nothing is read any more: this node stops.
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

/// Documents by their hashes, bounded by bytes; the oldest go first. What has a hash never changes.
#[derive(Debug, Default)]
struct Kept {
    texts: BTreeMap<Hash32, Arc<str>>,
    order: VecDeque<Hash32>,
    bytes: usize,
}

impl Kept {
    fn keep(&mut self, hash: Hash32, text: Arc<str>) {
        if text.len() > DOCUMENTS_BYTES_MAX || self.texts.contains_key(&hash) {
            return;
        }
        self.bytes += text.len();
        self.texts.insert(hash, text);
        self.order.push_back(hash);
        while self.bytes > DOCUMENTS_BYTES_MAX {
            let Some(gone) = self.order.pop_front().and_then(|oldest| self.texts.remove(&oldest)) else { return };
            self.bytes -= gone.len();
        }
    }
}

/// Finds devices' documents.
pub struct Documents {
    state: StateStore,
    gateway: Option<Gateway>,
    kept: Mutex<Kept>,
}

impl Documents {
    /// Asks nobody yet. Without a gateway only documents that the log holds are found.
    pub(crate) fn new(state: StateStore, gateway: Option<Gateway>) -> Self {
        Self { state, gateway, kept: Mutex::default() }
    }

    /// A device's document; `None` where the device is unknown, not registered now, or has none. What was fetched is
    /// kept for the next time; failures are remembered for a while.
    ///
    /// # Errors
    /// If there should be one, and it cannot be had.
    pub async fn document(&self, device: &Address) -> Result<Option<String>, DocumentsError> {
        let (state, device) = (self.state.clone(), *device);
        let known = proofs::short(state.blocking(), move || state.device(&device)).await??;
        let Some(known) = known.filter(|known| known.registered) else { return Ok(None) };
        let (uri, hash) = match known.document {
            Document::Absent => return Ok(None),
            Document::Text(text) => return Ok(Some(text)),
            Document::Remote { uri, hash } => (uri, hash),
        };
        if let Some(text) = self.kept.lock().texts.get(&hash) {
            return Ok(Some(text.to_string()));
        }
        if uri.is_empty() {
            return Err(DocumentsError::NoUri);
        }
        let gateway = self.gateway.as_ref().ok_or(DocumentsError::NoGateway)?;
        let text = String::from_utf8(gateway.fetch(&uri, &hash).await?).map_err(|_| DocumentsError::NotText)?;
        self.kept.lock().keep(hash, text.as_str().into());
        Ok(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_documents_go_when_there_are_too_many_bytes() {
        let mut kept = Kept::default();
        let text: Arc<str> = "x".repeat(DOCUMENTS_BYTES_MAX / 4).into();
        for n in 0..9 {
            kept.keep([n; 32], text.clone());
            kept.keep([n; 32], text.clone());
        }
        assert_eq!(kept.texts.keys().map(|hash| hash[0]).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!((kept.order.len(), kept.bytes), (4, 4 * text.len()));
        kept.keep([99; 32], "x".repeat(DOCUMENTS_BYTES_MAX + 1).into());
        assert!(!kept.texts.contains_key(&[99; 32]));
    }
}
