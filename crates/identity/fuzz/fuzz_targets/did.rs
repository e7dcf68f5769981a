//! A DID has one spelling.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::Did;

fuzz_target!(|text: &str| {
    if let Ok(did) = text.parse::<Did>() {
        assert_eq!(did.to_string(), text);
    }
});
