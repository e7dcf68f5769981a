//! Connections between the members of one network: request/response streams and gossip, over libp2p.
//!
//! [`Network::bind`] takes [`Options`], opens the listening sockets and returns three parts: the [`Network`], whose
//! [`run`](Network::run) is one task; a [`Handle`] that any part of the node may clone; and the [`GossipInbox`].
//!
//! * **Streams.** [`Handle::client`] gives a [`Client`] that keeps one stream to one member open and sends one
//!   request at a time; [`Handle::serve`] answers such streams. They begin once the node has said how far logs reach
//!   ([`Handle::set_log_view`]), because a member with too short a log is refused.
//! * **Gossip.** [`Handle::publish`] sends a hint to all members. Nothing may depend on its arrival.
//! * **Joining.** [`Handle::serve_join`] answers whoever asks, and [`ask`] asks.
//! * **Gateways.** [`Handle::serve_gateways`] answers bundles of the keys that the operator admits, and [`Gateway`] sends
//!   them.
//!
//! Frames never pass through the swarm task: a stream is read and written by the task that uses it, so a busy swarm
//! does not delay an append. Whoever is not a member, by the key that the connection proves, may ask to join, or
//! be a gateway, and nothing else; a member speaks on a stream only after it has said which network, epoch, node id and store it is, and
//! where its log ends (docs/formats.md). Each queue, frame and stream count has its bound in [`limits`].
//!
//! A member is dialed at every address that is known for it: from the member list, the configuration, an address book,
//! and what it says itself. When all fail the connected members are asked where it is.
//!
//! Consumers define the ports that they need over [`Client`] and [`Service`]; a simulated network stands behind the
//! same ports, and nothing of libp2p appears in this crate's interface.

mod addresses;
mod ask;
mod behaviour;
mod client;
mod directory;
mod doors;
mod frame;
#[doc(hidden)]
pub mod fuzz;
mod gateway;
mod gateway_client;
mod gossip;
mod handle;
mod hello;
mod hints;
mod join;
mod lifetime;
pub mod limits;
mod links;
mod listen;
mod log_view;
mod lookup;
mod members_only;
pub mod metrics;
mod network;
mod open_streams;
mod options;
mod server;
mod transport;
mod wire;

pub use ask::{AskError, ask};
pub use client::CallError;
pub use gateway::{GatewayRefusal, GatewayService};
pub use gateway_client::{Gateway, GatewayError};
pub use gossip::{GossipFeed, GossipInbox, GossipMessage, GossipTicket};
pub use handle::{Handle, PeerState, StoppedError};
pub use hello::{Channel, check_store};
pub use join::JoinService;
pub use log_view::LogView;
pub use network::Network;
pub use options::{NetworkError, Options, Peer, peer_id_of};
pub use server::{ServeError, Service};
pub use wire::{Answer, Client, Wire, WireClient};
