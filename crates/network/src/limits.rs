//! The bounds of this crate, in one place. What happens at each is said with it.

use std::time::Duration;

/// Default for the largest frame on the raft channel: a batch of entries after an absence. Larger requests are
/// [`CallError::TooLarge`](crate::CallError::TooLarge) for the caller and refused by the receiver.
pub const RAFT_BYTES_MAX: u64 = 32 << 20;
/// Default for the largest frame on the bundle channel; answers as for [`RAFT_BYTES_MAX`].
pub const BUNDLE_BYTES_MAX: u64 = 4 << 20;
/// Largest frame on the control channel; answers as for [`RAFT_BYTES_MAX`].
pub const CONTROL_BYTES_MAX: u64 = 4 << 20;
/// Largest frame on the snapshot channel: bulk data comes in pieces; answers as for [`RAFT_BYTES_MAX`].
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
pub const CONNECTIONS_PER_PEER_MAX: usize = 8;
/// Established connections of members in all; one more is denied.
pub const CONNECTIONS_MAX: usize = 1024;
/// Inbound connections that have not proved their key yet; one more is dropped. Each holds its place for at most
/// [`CONNECT_TIMEOUT`].
pub const PENDING_INBOUND_MAX: usize = 256;
/// The same from one IP address, so that one machine cannot take all places; one more is dropped.
pub const PENDING_INBOUND_PER_ADDRESS_MAX: usize = 64;
/// Dials under way; one more counts as failed and is put off.
pub const PENDING_OUTBOUND_MAX: usize = 512;

/// Connections of strangers (keys that are not a member's) in all; one more is denied. They take no member's place.
pub const STRANGERS_MAX: usize = 32;
/// A stranger's connection is closed after this time: enough to ask to join.
pub const STRANGER_TIME_MAX: Duration = Duration::from_secs(30);
/// Streams that a stranger's connection may have at a time, those that are refused among them; it is closed at one
/// more. With the window of a stream (256 KiB) this bounds what all strangers can make a node hold: 128 MiB.
pub const STRANGER_STREAMS_MAX: usize = 16;
/// Time for the orderly end of a connection; then it is dropped.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// Largest request to join; a larger one is refused.
pub const JOIN_REQUEST_BYTES_MAX: u64 = 16 << 10;
/// Largest answer to such a request; a larger one becomes a refusal.
pub const JOIN_ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Requests to join that are answered at a time, of all keys together; one more is refused.
pub const JOIN_STREAMS_MAX: usize = 8;
/// Refusals of such requests that are being written; beyond it a stream is dropped without a word.
pub const JOIN_REFUSALS_MAX: usize = 32;
/// Time for a request to join, from the stream's beginning to the answer's last byte; then the stream ends.
pub const JOIN_TIME_MAX: Duration = Duration::from_secs(10);
/// One key may ask once in this time; a request before that is refused.
pub const JOIN_INTERVAL: Duration = Duration::from_secs(1);
/// Keys whose last request is remembered for that, so all keys together ask at most this often in
/// [`JOIN_INTERVAL`]; one more is refused.
pub const JOIN_KEYS_MAX: usize = 256;

/// Gateways that a node may admit; more are an error at start.
pub const GATEWAYS_MAX: usize = 256;
/// Connections that one gateway may hold, half-dead ones among them; one more is denied.
pub const CONNECTIONS_PER_GATEWAY_MAX: usize = 4;
/// Largest bundle of a gateway; a larger one is refused.
pub const GATEWAY_REQUEST_BYTES_MAX: u64 = 8 << 20;
/// Largest answer to one; a larger one becomes a refusal.
pub const GATEWAY_ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Bundles of one gateway that are answered at a time; one more is refused.
pub const GATEWAY_STREAMS_PER_PEER_MAX: usize = 4;
/// Bundles of all gateways that are answered at a time; one more is refused. With [`GATEWAY_REQUEST_BYTES_MAX`] this
/// bounds what gateways can make a node hold: 256 MiB.
pub const GATEWAY_STREAMS_MAX: usize = 32;
/// Refusals of bundles that are being written; beyond it a stream is dropped without a word.
pub const GATEWAY_REFUSALS_MAX: usize = 32;
/// Time for a bundle, from the stream's beginning to the answer's last byte; then the stream ends.
pub const GATEWAY_TIME_MAX: Duration = Duration::from_secs(30);

/// Addresses kept for one member, its place in the member list among them; beyond it the least trusted is forgotten.
pub const ADDRESSES_MAX: usize = 6;
/// Addresses taken from one message of a member about itself; the rest is not looked at.
pub const ADDRESSES_PER_MESSAGE_MAX: usize = 4;
/// Longest address in bytes; a longer one is not kept.
pub const ADDRESS_BYTES_MAX: usize = 300;
/// Bootstrap addresses; more are an error at start.
pub const BOOTSTRAP_MAX: usize = 64;
/// Members that are looked up at a time; one more waits for the next time its dials fail.
pub const LOOKUPS_MAX: usize = 16;
/// Time for looking a member up; then the attempt ends with what it found.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

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
/// A dial that has neither succeeded nor failed for this long does not keep the member's next address waiting.
pub const DIAL_STAGGER: Duration = Duration::from_secs(1);
/// Pause after all addresses of a member failed; each later one is twice as long.
pub const REDIAL_MIN: Duration = Duration::from_millis(200);
/// Longest pause between two rounds through a member's addresses.
pub const REDIAL_MAX: Duration = Duration::from_secs(5);
/// Attempts to open a stream within one call: the swarm drops an inbound stream that comes while another waits to
/// be picked up.
pub const OPEN_ATTEMPTS_MAX: u32 = 6;
/// The same complaint about the same peer is logged once in this time.
pub const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
