//! Copies of the state outside of a store: what belongs to one, and looking into it.

use std::path::Path;

use keccak_asm::{Digest as _, Keccak256};
use lockstep_ledger::Head;
use lockstep_store::{Kind, RocksStorage, Storage as _, Table, keys};
use lockstep_types::{Genesis, Hash32};

pub use crate::snapshot::{is_data_file, sum_of};
use crate::state_store::ReadError;

/// keccak256 of what comes in pieces.
#[derive(Debug, Clone)]
pub struct Hasher(Keccak256);

impl Default for Hasher {
    fn default() -> Self {
        Self(Keccak256::new())
    }
}

impl Hasher {
    /// Takes a piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The hash of all pieces.
    pub fn finish(self) -> Hash32 {
        self.0.finalize().into()
    }
}

/// The head of the state in a copy.
///
/// # Errors
/// If it is not a whole copy.
pub fn head_of_copy(path: &Path, genesis: &Genesis) -> Result<Head, ReadError> {
    let record = RocksStorage::open_to_read(path, Kind::State)?.get(Table::Index, keys::HEAD)?;
    let head = record.map(Head::decode).transpose()?;
    Ok(head.unwrap_or_else(|| Head::genesis(genesis.params.first_task_number)))
}
