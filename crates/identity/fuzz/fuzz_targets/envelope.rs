//! No text makes the reader of encrypted messages panic. The seeds are messages to the server whose key this is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::{Curve, ServerIdentity, ServerSecret, SproutRequest};
use std::sync::LazyLock;

static SERVER: LazyLock<ServerIdentity> = LazyLock::new(|| {
    let secret = "EmdySD5TNksMEB5CMQE5fV4OK109Pm1MLWdhXRwdFy0UJDpaBwBsfXBEDRdtFWUTNQJtDwx0Ckc2KAw9K3F5UA==";
    ServerIdentity::new(ServerSecret::from_base64(secret, Curve::Secp256k1).unwrap())
});

fuzz_target!(|text: &[u8]| {
    if let Ok(opened) = SERVER.decrypt_request(text) {
        let _ = SproutRequest::parse(&opened.plaintext);
    }
});
