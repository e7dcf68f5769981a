//! What an EVM chain says about devices and projects: the ioID registry, which device may submit to which
//! project, and what became of tasks.
//!
//! [`ChainReader::next_range`] reads the next blocks that have enough others on top; [`ChainReader::range`] reads
//! the same blocks again, on any node and at any time, and [`Range::digest`] is then the same. Nothing here
//! keeps a cursor: that lies in the log. [`Documents`] fetches what a device's URI names, from one gateway only, and [`Service`] asks
//! a coordinator.
//!
//! [`Endpoint`] and [`Rpc`] serve whoever else asks a server whose URL may be a secret.
//!
//! `abi`, `log`, `event` and `uri` decide and never wait; `rpc`, `reader`, `documents` and `service` ask.

pub mod abi;
mod documents;
mod endpoint;
mod error;
mod event;
mod failures;
#[doc(hidden)]
pub mod fuzz;
mod log;
mod reader;
mod rpc;
mod service;
mod source;
mod uri;

pub use documents::{DOCUMENT_BYTES_MAX, DOCUMENT_TIMEOUT, DocumentOptions, Documents, FAILURE_TTL, FETCHES_MAX};
pub use endpoint::{Endpoint, EndpointError, TransferError, read_body, send};
pub use error::{ChainError, DocumentError};
pub use event::{EVENTS_MAX, Event, Range, TaskState, TaskStates, URI_BYTES_MAX};
pub use failures::FAILURES_MAX;
pub use reader::{ChainReader, LOGS_MAX};
pub use rpc::{ANSWER_BYTES_MAX, LOGS_BYTES_MAX, RPC_TIMEOUT, Rpc};
pub use service::{Service, ServiceError};
pub use source::{CONFIRMATIONS_DEFAULT, ChainSource, RANGE_BLOCKS_MAX, SPAN_MAX_DEFAULT, SourceError};
