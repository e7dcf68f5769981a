//! No text makes the reader of tokens panic. The seeds have tokens of the server whose key this is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::{Curve, ServerIdentity, ServerSecret, sprout};
use std::sync::LazyLock;

static SERVER: LazyLock<ServerIdentity> = LazyLock::new(|| {
    let secret = "EmdySD5TNksMEB5CMQE5fV4OK109Pm1MLWdhXRwdFy0UJDpaBwBsfXBEDRdtFWUTNQJtDwx0Ckc2KAw9K3F5UA==";
    ServerIdentity::new(ServerSecret::from_base64(secret, Curve::Secp256k1).unwrap())
});

fuzz_target!(|text: &str| {
    if let Some(token) = sprout::token_of(Some(text), None) {
        let _ = SERVER.verify_token(token);
    }
});
