//! Publishing final tasks to the stores that readers already use.
//!
//! [`output`] has the promise that every store keeps, [`Output`]; [`postgres`] and [`sqlite`] keep it with the tables of
//! one of W3bstream's generations of readers ([`layout`]), and set [`aside`] what they cannot take. [`publisher`] reads final tasks from its [`source`], signs them and hands
//! them on, in order, for ever. It holds no truth of its own: what was published is what the store says
//! ([`Output::last`]), so that a new leader, a restart or a restored store goes on at the right place. What is [`stored`] can be
//! read again, for audits.

// What stores share is not all used where some are left out.
#![cfg_attr(
    not(all(
        feature = "sqlite",
        feature = "postgres",
        feature = "object",
        feature = "altda",
        feature = "celestia",
        feature = "nats"
    )),
    allow(dead_code, unused_imports)
)]

#[cfg(feature = "altda")]
pub mod altda;
pub mod aside;
#[cfg(any(feature = "object", feature = "altda", feature = "celestia", feature = "nats"))]
mod blobs;
#[cfg(feature = "celestia")]
pub mod celestia;
#[cfg(any(feature = "altda", feature = "celestia"))]
pub mod deposits;
pub mod layout;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "object")]
pub mod object;
pub mod origin;
pub mod output;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod publisher;
pub mod source;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod stored;
mod tables;

#[cfg(feature = "altda")]
pub use altda::{AltDaMode, AltDaOptions, AltDaOutput};
pub use aside::{Refusals, RefusedTask, SetAside};
#[cfg(feature = "celestia")]
pub use celestia::{CelestiaOptions, CelestiaOutput, Namespace, NamespaceError};
pub use layout::Layout;
#[cfg(feature = "nats")]
pub use nats::{NatsOptions, NatsOptionsError, NatsOutput};
#[cfg(feature = "object")]
pub use object::{ObjectOptions, ObjectOptionsError, ObjectOutput};
pub use origin::{Origin, Part, check_origins};
pub use output::{Adopted, Adoption, FinalMessage, FinalTask, Output, OutputError, Owner, Place, Receipt, Stage};
#[cfg(feature = "postgres")]
pub use postgres::{
    PostgresOptions, PostgresOptionsError, PostgresOutput, ReaderAccess, ReaderError, ReaderPassword, set_up_reader,
};
pub use publisher::{Handle, Options, Publisher, Slot, State, Status};
pub use source::{ProgressSink, SourceError, TaskSigner, TaskSource, UnsignedTask};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteOptions, SqliteOutput};
pub use stored::{Damaged, Page, StrayMark, Strays};
