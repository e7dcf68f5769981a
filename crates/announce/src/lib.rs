//! Tells W3bstream's provers of tasks, on their own libp2p network.
//!
//! A prover of the apinode generation hears of a task by gossip and fetches it once. So a task is announced after its
//! rows are committed, and again with growing pauses until it is assigned, because an announcement that nobody hears is
//! lost.
//!
//! [`Announcer::bind`] takes [`Options`] and a [`TaskFeed`], opens the sockets, and returns the [`Announcer`], whose
//! [`run`](Announcer::run) is one task, and a [`Handle`], which tells its [`Status`]. Within it are two parts: `network` is the swarm,
//! and `teller` decides by the pure `plan` what is announced when. Nothing of libp2p appears in this crate's interface.
//!
//! The swarm has a key of its own and shares nothing with the network of Lockstep's nodes. Whoever connects to it is a
//! stranger: each connection, stream, message and table has its bound in [`limits`].

mod announcement;
mod announcer;
mod behaviour;
mod feed;
pub mod limits;
pub mod metrics;
mod multiplexer;
mod network;
mod options;
mod plan;
mod teller;

pub use announcement::Announcement;
pub use announcer::{Announcer, Handle, Status};
pub use feed::{CommittedTask, FeedError, TaskFeed};
pub use limits::ATTEMPTS_MAX;
pub use options::{AnnounceError, Options};
