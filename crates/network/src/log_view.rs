//! What this crate has to know of the node's log.

use lockstep_types::NodeId;

/// Tells how far logs reach, so that a member whose disk was restored from an older copy is kept out: it could vote
/// for a past that it had already left behind.
///
/// Both answers come at once and from any thread.
pub trait LogView: Send + Sync + 'static {
    /// Index of the last entry in this node's log; 0 where it is empty.
    fn last_index(&self) -> u64;

    /// The highest index up to which `node` is known to have acknowledged the log; 0 where nothing is known of it. It
    /// never falls.
    fn acknowledged(&self, node: NodeId) -> u64;
}
