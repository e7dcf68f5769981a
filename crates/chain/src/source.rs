//! Which chain, which contracts, and how far behind its head they are read.

use lockstep_types::{Address, Hash32, keccak256};

const SOURCE_DOMAIN: &[u8] = b"lockstep/chain-source/v1";

/// Blocks that must lie on top of a block before it is read, unless configured otherwise.
pub const CONFIRMATIONS_DEFAULT: u64 = 12;
/// Blocks in one request for logs, unless configured otherwise: what most endpoints allow.
pub const SPAN_MAX_DEFAULT: u64 = 1_000;
/// Blocks in one range, and the most that `span_max` may be.
pub const RANGE_BLOCKS_MAX: u64 = 10_000;

/// What is read. All voters of a network must agree on it, so it belongs into its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSource {
    /// EIP-155 id of the chain.
    pub chain_id: u64,
    /// The ioID registry: `NewDevice`, `UpdateDevice`, `RemoveDevice`, `documentURI`.
    pub registry: Address,
    /// Which device may submit to which project: `Approve`, `Unapprove`, `approved`.
    pub project_device: Address,
    /// Where tasks are assigned and settled; read apart from the registry.
    pub task_manager: Option<Address>,
    /// The first block that can hold an event: that of the older contract's deployment.
    pub start_block: u64,
    /// Blocks on top of a block before it counts. 0 only on chains whose blocks are final at once.
    pub confirmations: u64,
    /// Blocks in one request for logs, and in what [`crate::ChainReader::next_range`] returns.
    pub span_max: u64,
}

/// A source that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// `span_max` out of bounds.
    #[error("span_max must be 1 to {RANGE_BLOCKS_MAX} blocks")]
    SpanMax,
    /// A contract at the zero address.
    #[error("a contract's address is zero")]
    ZeroAddress,
}

impl ChainSource {
    /// A source with the defaults, read from block 0.
    pub fn new(chain_id: u64, registry: Address, project_device: Address) -> Self {
        Self {
            chain_id,
            registry,
            project_device,
            task_manager: None,
            start_block: 0,
            confirmations: CONFIRMATIONS_DEFAULT,
            span_max: SPAN_MAX_DEFAULT,
        }
    }

    /// Refuses what could never be read.
    pub fn check(&self) -> Result<(), SourceError> {
        if !(1..=RANGE_BLOCKS_MAX).contains(&self.span_max) {
            return Err(SourceError::SpanMax);
        }
        if self.contracts().any(|address| address == Address::ZERO) {
            return Err(SourceError::ZeroAddress);
        }
        Ok(())
    }

    /// Names chain and contracts of the registry: keccak256 over the domain, the chain id as 8 bytes and the two
    /// addresses. Part of every [`crate::Range`], so that nodes that read other contracts never agree by chance
    /// on blocks without events.
    pub fn id(&self) -> Hash32 {
        let chain_id = self.chain_id.to_be_bytes();
        keccak256(&[SOURCE_DOMAIN, &chain_id, self.registry.as_bytes(), self.project_device.as_bytes()])
    }

    /// All contracts that are read.
    pub(crate) fn contracts(&self) -> impl Iterator<Item = Address> {
        [self.registry, self.project_device].into_iter().chain(self.task_manager)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_could_never_be_read_is_refused() {
        let good = ChainSource::new(1, Address([1; 20]), Address([2; 20]));
        assert_eq!(good.check(), Ok(()));
        for span_max in [0, RANGE_BLOCKS_MAX + 1] {
            assert_eq!(ChainSource { span_max, ..good.clone() }.check(), Err(SourceError::SpanMax));
        }
        let zero = ChainSource { task_manager: Some(Address::ZERO), ..good };
        assert_eq!(zero.check(), Err(SourceError::ZeroAddress));
    }

    #[test]
    fn a_source_is_named_by_chain_and_contracts_only() {
        let source = ChainSource::new(1, Address([1; 20]), Address([2; 20]));
        assert_eq!(source.id(), ChainSource { confirmations: 3, span_max: 7, ..source.clone() }.id());
        assert_ne!(source.id(), ChainSource { chain_id: 2, ..source.clone() }.id());
        assert_ne!(source.id(), ChainSource::new(1, Address([2; 20]), Address([1; 20])).id());
    }
}
