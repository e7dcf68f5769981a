//! Requests of the sprout generation and for tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::{SproutRequest, sprout};

fuzz_target!(|body: &[u8]| {
    let _ = sprout::parse_token_request(body);
    if let Ok(request) = SproutRequest::parse(body) {
        assert!(request.project_id.0 > 0 && !request.project_version.is_empty() && !request.data.is_empty());
    }
});
