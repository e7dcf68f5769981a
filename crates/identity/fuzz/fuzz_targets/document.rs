//! A document that is read belongs to its key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::Document;

fuzz_target!(|text: &[u8]| {
    if let Ok(document) = Document::parse(text) {
        assert_eq!(document.authentication.did(), document.did);
        assert!(document.key_agreement_kid.as_str().starts_with(&document.key_agreement.did().to_string()));
    }
});
