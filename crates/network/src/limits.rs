//! The bounds of this crate, in one place. What happens at each is said with it.

use std::time::Duration;

/// Default for the largest frame on the raft channel: a batch of entries after an absence. Larger requests are
/// [`CallError::TooLarge`](crate::CallError::TooLarge) for the caller and refused by the receiver.
pub const RAFT_BYTES_MAX: u64 = 32 << 20;
/// Default for the largest frame on the bundle channel; answers as for [`RAFT_BYTES_MAX`].
pub const BUNDLE_BYTES_MAX: u64 = 4 << 20;
/// Largest frame on the snapshot channel; answers as for [`RAFT_BYTES_MAX`].
pub const SNAPSHOT_BYTES_MAX: u64 = 4 << 20;
/// Default for the largest gossip message; a larger one is not published, and rejected when received.
pub const GOSSIP_BYTES_MAX: u64 = 1 << 20;
/// Largest `Hello` frame; a larger one ends the stream.
pub const HELLO_BYTES_MAX: u64 = 256;
/// Longest reason in a refusal; the rest is cut off.
pub const REFUSAL_BYTES_MAX: u64 = 512;

/// Streams that one member may have open to us on one channel; one more is refused.
pub const INBOUND_STREAMS_PER_PEER_MAX: usize = 64;
/// Connections that one member may hold, so that simultaneous dials and half-dead ones fit; one more is denied.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 8;
/// Established connections in all; one more is denied.
pub const CONNECTIONS_MAX: u32 = 1024;
/// Inbound connections that have not proved their key yet; one more is dropped, so strangers hold at most this many
/// sockets, each for [`CONNECT_TIMEOUT`].
pub const PENDING_INBOUND_MAX: u32 = 256;
/// Dials under way; one more is put off.
pub const PENDING_OUTBOUND_MAX: u32 = 128;

/// Messages that wait to be published; one more is dropped and counted.
pub const PUBLISH_QUEUE_MAX: usize = 256;
/// Received messages that wait for the consumer; one more is ignored (not passed on) and counted.
pub const GOSSIP_INBOX_MAX: usize = 1024;
/// Verdicts that wait for the swarm; one more is lost, and its message is not passed on.
pub const VERDICTS_MAX: usize = 4096;
/// Messages that wait for one slow peer; gossip to it is dropped beyond.
pub const GOSSIP_PEER_QUEUE_MAX: usize = 256;
/// Changes of members that wait for the swarm; the caller waits beyond.
pub const COMMANDS_MAX: usize = 64;

/// Time for dial, Noise and multiplexer together; then the connection is given up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a `Hello` after a stream was opened; then the stream ends.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a frame's body once its length has come, and for writing an answer; then the stream ends.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between pings of one connection.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A connection without the answer to a ping for this long is given up, and the member dialed again.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Pause before the second dial of a member; each later one is twice as long.
pub const REDIAL_MIN: Duration = Duration::from_millis(200);
/// Longest pause between dials of a member.
pub const REDIAL_MAX: Duration = Duration::from_secs(5);
/// Attempts to open a stream within one call: the swarm drops an inbound stream that comes while another waits to
/// be picked up.
pub const OPEN_ATTEMPTS_MAX: u32 = 6;
/// The same complaint about the same peer is logged once in this time.
pub const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
