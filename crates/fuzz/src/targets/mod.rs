//! All targets. Each file has those of one kind of reader.

mod chain;
mod devices;
mod http;
mod ledger;
mod members;
mod rules;
mod stores;

use crate::target::Target;

/// Every target.
pub fn targets() -> Vec<Target> {
    [
        chain::TARGETS,
        devices::TARGETS,
        http::TARGETS,
        ledger::TARGETS,
        members::TARGETS,
        rules::TARGETS,
        stores::TARGETS,
    ]
    .concat()
}

/// The target with a name.
pub fn find(name: &str) -> Option<Target> {
    targets().into_iter().find(|target| target.name == name)
}

/// The bytes as text; what is none is read as far as it is.
fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}
