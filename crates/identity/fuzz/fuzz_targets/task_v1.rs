//! A request of the 2025 API that is read says the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::{SignedKey, TaskContent, TaskRequest, sign_task};
use lockstep_types::SigningKey;

fuzz_target!(|body: &[u8]| {
    let Ok(request) = TaskRequest::parse(body) else { return };
    let keys = [SignedKey::new("timestamp").unwrap()];
    let _ = request.candidates(&keys);
    let content = TaskContent {
        nonce: request.nonce,
        project_id: request.project_id,
        project_version: &request.project_version,
        payload: &request.payload,
    };
    let key = SigningKey::from_bytes([5; 32]).unwrap();
    let Ok(again) = sign_task(&key, content, &[]) else { return };
    let again = TaskRequest::parse(&again).unwrap();
    assert_eq!(again.digest(&[]), request.digest(&[]));
    assert!(again.candidates(&[]).unwrap().iter().any(|candidate| candidate.device == key.address()));
});
