//! Bounds of copying the state between members, and of the log. What happens at each is said with it.

use std::time::Duration;

/// Default for bytes of log entries since the last snapshot; with more, a snapshot is made and the log purged.
pub const LOG_BYTES_MAX: u64 = 64 << 20;
/// Default for log entries since the last snapshot; as [`LOG_BYTES_MAX`].
pub const LOG_ENTRIES_MAX: u64 = 20_000;
/// Default for entries that are kept although a snapshot contains them, so that a member that was away briefly catches
/// up from the log. Of these, no more than half of the bytes that make a snapshot due are kept.
pub const LOG_KEPT_ENTRIES: u64 = 2_000;
/// While a member fetches the state, the entries behind that state are kept for it, and those that it is being sent are
/// too, up to this many times the bytes or entries that make a snapshot due; beyond, the log is purged all the same, and
/// the member gets a newer offer.
pub(crate) const LOG_HELD_FACTOR: u64 = 8;
/// How often the log is looked at.
pub(crate) const COMPACTION_INTERVAL: Duration = Duration::from_secs(1);
/// A snapshot that was asked for and did not come is asked for again after this time.
pub(crate) const SNAPSHOT_RETRY: Duration = Duration::from_secs(30);

/// Entries of one append of another member; an append of more is refused. This program sends 16.
pub(crate) const RAFT_ENTRIES_MAX: usize = 4_096;
/// Sets of voters in one message of raft; one of more is refused.
pub(crate) const RAFT_NODES_MAX: usize = 4_096;
/// How far ahead of this node's own term that of another member may be; what says more is refused. A member that was
/// away meets no more elections than that, and whoever lies needs more messages than there is time for to use up the
/// terms.
pub(crate) const TERM_LEAP_MAX: u64 = 1 << 20;

/// Most files of a copy; an offer of more is refused.
pub(crate) const SNAPSHOT_FILES_MAX: usize = 65_536;
/// Most bytes of a copy; an offer of more is refused.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 4 << 40;
/// Bytes of the disk that a copy leaves free; an offer for which there is no room is refused until there is.
pub(crate) const DISK_FREE_BYTES_MIN: u64 = 64 << 20;
/// Most bytes of a piece; a request for more gets this many.
pub(crate) const PIECE_BYTES_MAX: u64 = 1 << 20;
/// Pieces that a member fetches at a time, each of another file; so it holds this many in memory.
pub(crate) const PIECES_AT_A_TIME: usize = 4;
/// Pieces that are read from disk for others at a time; further requests wait.
pub(crate) const READS_AT_A_TIME: usize = 8;
/// Time for the answer to a request for a piece.
pub(crate) const PIECE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a piece that did not come; twice as long each time, up to [`PIECE_PAUSE_MAX`].
pub(crate) const PIECE_PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PIECE_PAUSE_MIN`].
pub(crate) const PIECE_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Files that turned out other than offered, in one transfer; with more it is given up until a later offer.
pub(crate) const BAD_FILES_MAX: u64 = 8;
/// Pause before a transfer that failed is tried again.
pub(crate) const TRANSFER_RETRY: Duration = Duration::from_secs(5);

/// How often the leader repeats its offer.
pub(crate) const OFFER_INTERVAL: Duration = Duration::from_millis(300);
/// How often the leader repeats an offer that the member has a problem with.
pub(crate) const OFFER_INTERVAL_PROBLEM: Duration = Duration::from_secs(2);
/// Pause before a member that could not be reached is offered a snapshot again.
pub(crate) const OFFER_PAUSE: Duration = Duration::from_secs(1);
/// A member whose offers stay out for this long stops fetching; what it has stays for the next offer.
pub(crate) const OFFER_SILENCE_MAX: Duration = Duration::from_secs(30);
/// A copy that is neither complete nor offered for this long is removed.
pub(crate) const INCOMING_KEPT: Duration = Duration::from_secs(600);
/// A copy of the state that is no longer the newest one stays this long after the last request for a piece of it.
pub(crate) const COPY_SERVED_FOR: Duration = Duration::from_secs(60);
/// The log behind an offered state is kept for this long after the member's last answer.
pub(crate) const LOG_HELD_FOR: Duration = Duration::from_secs(20);
/// How often progress is logged.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
