//! Who sent a message: reading what devices send, and finding the device from its signature.
//!
//! Pure: bytes in, verified messages out. The one protocol so far is W3bstream's apinode generation, [`apinode`];
//! its JSON is read by the bounded reader in `json`, because devices sign what Go's `encoding/json` makes of a
//! request, and general-purpose readers differ from it in ways that would change the signer.

pub mod apinode;
mod bulk;
mod error;
mod idempotency;
mod json;

pub use apinode::{DeviceRequest, TaskQuery, sign_body, signed_body};
pub use bulk::parse_bulk;
pub use error::{Field, RequestError};
pub use idempotency::{IDEMPOTENCY_KEY_BYTES_MAX, IdempotencyKey};
