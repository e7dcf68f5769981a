//! The bounds of this crate, in one place. What happens at each is said with it.

use std::time::Duration;

/// Tasks that wait to be announced, or to be announced again. When there are more, one that was announced before gives
/// way; while none was, no more are read, and they stay where they are.
pub const TASKS_MAX: usize = 16_384;
/// Tasks of one read from the feed.
pub const READ_TASKS_MAX: usize = 256;
/// Announcements in one go, before anything else is looked at.
pub const TOGETHER_MAX: usize = 64;
/// Pause after the first announcement of a task; each later one is twice as long.
pub const PAUSE_MIN: Duration = Duration::from_secs(2);
/// Longest pause between two announcements of a task.
pub const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Default for the announcements of one task: they come to an end within half an hour.
pub const ATTEMPTS_MAX: u32 = 12;
/// A task that was announced is not announced again when it has waited for this long.
pub const AGE_MAX: Duration = Duration::from_secs(3_600);
/// When nobody listens, all wait for this long, or until somebody does.
pub const HOLD: Duration = Duration::from_secs(1);
/// Pause after the feed failed.
pub const FEED_PAUSE: Duration = Duration::from_secs(1);
/// Tasks before the newest committed one that are announced again after a start or a change of leader, unless they are
/// assigned: nobody knows which of them were heard.
pub const REPEATED_MAX: u64 = 256;
/// Tasks before the newest committed one that are announced after a start although none was before; older ones are
/// left out.
pub const CATCH_UP_MAX: u64 = 4_096;
/// Least time between two notes of how far this node is.
pub const REMEMBER_INTERVAL: Duration = Duration::from_secs(1);
/// Announcements that wait for the swarm; the one who announces waits beyond.
pub const PUBLISH_QUEUE_MAX: usize = 16;

/// Largest gossip message, as the reference allows; a larger one ends the stream that it comes on.
pub const GOSSIP_BYTES_MAX: usize = 1 << 20;
/// Largest announcement that is passed on; a larger one is rejected.
pub const ANNOUNCEMENT_BYTES_MAX: usize = 1 << 10;
/// Messages that wait for one slow peer; gossip to it is dropped beyond.
pub const GOSSIP_PEER_QUEUE_MAX: usize = 256;
/// How long a message is remembered, so that it is not passed on twice.
pub const DUPLICATE_MEMORY: Duration = Duration::from_secs(120);

/// Bootstrap addresses; more are an error at start.
pub const BOOTSTRAP_MAX: usize = 64;
/// Connections that others opened; one more is denied.
pub const INBOUND_MAX: u32 = 128;
/// Connections that this node opened; one more is not.
pub const OUTBOUND_MAX: u32 = 128;
/// Inbound connections that have not proved a key yet; one more is denied.
pub const PENDING_INBOUND_MAX: u32 = 32;
/// Dials under way; one more fails.
pub const PENDING_OUTBOUND_MAX: u32 = 64;
/// Connections of one peer; one more is denied.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Streams of one connection; one more ends it.
pub const STREAMS_PER_CONNECTION_MAX: usize = 64;
/// Addresses taken from what a peer says about itself; the rest is not looked at.
pub const ADDRESSES_PER_PEER_MAX: usize = 8;
/// Providers of the rendezvous that are dialed in one round.
pub const PROVIDERS_DIALED_MAX: usize = 32;
/// Time for dial, Noise and multiplexer together; then the connection is given up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing runs is closed after this time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause after a round of looking for peers while nobody listens; each later one is twice as long.
pub const ROUND_MIN: Duration = Duration::from_secs(1);
/// Pause between two rounds while somebody listens, and the longest one else.
pub const ROUND_MAX: Duration = Duration::from_secs(30);
/// The node's provider record is given to others again after this time; they keep it for a day.
pub const PROVIDE_INTERVAL: Duration = Duration::from_secs(1_800);
/// Time for a question to the other peers.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
