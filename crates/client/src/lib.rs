//! For devices and readers: submitting to whichever node answers, reading from it, and making load.
//!
//! A [`Device`] makes messages for one of the three device APIs and brings each to a node, once. An [`Outbox`] keeps
//! them on the disk until a node can be reached. [`Client`] is what both are made with: it goes from node to node until
//! one answers, and reads. [`fleet`] is made of devices at a given rate; [`bench`] measures what nodes can take, as fast
//! as they answer.
//!
//! ```no_run
//! use lockstep_client::{Device, Outbox};
//! use lockstep_types::{ProjectId, SigningKey};
//!
//! # async fn example(secret: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let nodes = ["http://10.0.0.1:9000", "http://10.0.0.2:9000"];
//! let device = Device::builder(nodes).signing(SigningKey::from_hex(secret)?)?;
//!
//! let receipt = device.submit(ProjectId(7), "0.1", r#"{"time":1732260000,"celsius":21.5}"#).await?;
//! println!("{:?}", receipt.sequence);
//!
//! let outbox = Outbox::open("readings.outbox")?;
//! outbox.enqueue(&device, ProjectId(7), "0.1", r#"{"time":1732260060,"celsius":21.4}"#)?;
//! outbox.drain(&device, |number, receipt| println!("{number:?} is {:?}", receipt.message_id)).await?;
//! # Ok(())
//! # }
//! ```

pub mod bench;
mod client;
mod conversation;
mod device;
mod error;
mod feed;
pub mod fleet;
#[doc(hidden)]
pub mod fuzz;
mod histogram;
mod look_up;
mod node;
pub mod outbox;
mod outcome;
mod prepared;
mod raw;
mod receipt;
mod rounds;
mod sending;
mod url;

pub use bench::{BenchOptions, BenchReport};
pub use client::{Client, ClientOptions, Submitted};
pub use device::{Device, DeviceBuilder, DeviceOptions, MessageState, MessageStates};
pub use error::ClientError;
pub use feed::{Follow, Followed, TaskFeed};
pub use fleet::{Acknowledgement, Fleet, FleetStats};
pub use outbox::{Outbox, OutboxError, OutboxNumber, OutboxOptions};
pub use outcome::Outcome;
pub use prepared::{Prepared, Way};
pub use receipt::Receipt;
pub use rounds::RETRY_AFTER_MAX;
pub use sending::POOL_TIME_MAX;
