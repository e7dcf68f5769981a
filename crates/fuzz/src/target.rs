//! One reader of bytes and what must hold of it.

use crate::allocation::peak_of;

/// Memory that any input may take, so that tables that are made once do not count.
const MEMORY_FREE: usize = 4 << 20;

/// See the module's documentation.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, on the command line and in directories.
    pub name: &'static str,
    /// True encodings, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads, and panics where something does not hold. True where the bytes were taken.
    pub read: fn(&[u8]) -> bool,
    /// Bytes of memory that one byte of input may take.
    pub memory_factor: usize,
}

impl Target {
    /// Two bytes of a message may become a small structure, in a list that is grown by doubling.
    pub const FACTOR_USUAL: usize = 64;

    /// A target with the usual bound on memory.
    pub(crate) const fn new(name: &'static str, seeds: fn() -> Vec<Vec<u8>>, read: fn(&[u8]) -> bool) -> Self {
        Self { name, seeds, read, memory_factor: Self::FACTOR_USUAL }
    }

    /// With another bound, where the bytes are this program's own, or the reader keeps more.
    pub(crate) const fn with_factor(self, memory_factor: usize) -> Self {
        Self { memory_factor, ..self }
    }

    /// Reads the bytes. True where they were taken.
    ///
    /// # Panics
    /// If something does not hold, or it takes too much memory.
    pub fn check(&self, bytes: &[u8]) -> bool {
        let (is_taken, peak) = peak_of(|| (self.read)(bytes));
        let allowed = MEMORY_FREE + self.memory_factor * bytes.len();
        assert!(peak <= allowed, "{} bytes took {peak} bytes of memory, {allowed} are allowed", bytes.len());
        is_taken
    }
}
