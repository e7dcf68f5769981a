//! Who sent a message: reading what devices send, and finding the device from its signature or its token.
//!
//! Pure: bytes in, verified messages out; time and randomness are arguments. Three generations of W3bstream's device
//! API are read. [`apinode`] and [`task_v1`]: the device signs what Go's `encoding/json` makes of a request, and
//! general-purpose JSON readers differ from it in ways that would change the signer, so the bounded reader in `json`
//! does it. [`sprout`]: the device has a [`did`] and a DID [`document`], shows a [`token`] that a server issued, and
//! encrypts in an [`envelope`]; a server's keys for that are a [`secret`].

pub mod apinode;
mod base64url;
mod bulk;
pub mod device;
pub mod did;
pub mod document;
pub mod envelope;
mod error;
mod fields;
mod idempotency;
mod json;
pub mod keys;
pub mod secret;
pub mod sprout;
pub mod task_v1;
pub mod token;

pub use apinode::{DeviceRequest, TaskQuery, sign_body, signed_body};
pub use bulk::{parse_bulk, parse_bundle};
pub use device::DeviceIdentity;
pub use did::{Did, DidError, KeyNumber, Kid};
pub use document::{Document, DocumentError};
pub use envelope::{EnvelopeError, Opened, Recipient};
pub use error::{Field, RequestError};
pub use idempotency::{IDEMPOTENCY_KEY_BYTES_MAX, IdempotencyKey};
pub use keys::{AgreementKey, Curve, KeyError, MasterKey, MasterPublicKey};
pub use lockstep_types::task_v1::SignedKey;
pub use secret::{PartySecret, SecretError, ServerIdentity, ServerSecret};
pub use sprout::SproutRequest;
pub use task_v1::{Candidate, TaskContent, TaskRequest, TaskSignature, sign_task};
pub use token::{Token, TokenError};
