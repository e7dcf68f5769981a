//! What tests of several crates share: real servers and nodes, started and stopped by the test that needs them, load
//! on them, and a checker that believes none of them.
//!
//! For tests only: nothing here is part of a release, and failures are panics that say what to do.

pub mod anvil;
pub mod audit;
pub mod background;
pub mod balancer;
pub mod bucket;
pub mod chaos;
pub mod check;
pub mod cluster;
pub mod da;
pub mod disk;
pub mod follow;
pub mod history;
pub mod http;
pub mod load;
pub mod nats;
pub mod operator;
pub mod order;
pub mod outputs;
pub mod partition;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod random;
pub mod rounds;
pub mod sim;
pub mod sockets;
pub mod spoil;
pub mod tmpfs;
pub mod w3bstream_peer;
pub mod wait;
