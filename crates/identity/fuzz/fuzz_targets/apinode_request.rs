//! A request of the apinode generation that is read says the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_identity::{DeviceRequest, apinode};
use lockstep_types::w3bstream::message_text;

fuzz_target!(|body: &[u8]| {
    let Ok(request) = apinode::parse(body) else { return };
    let text = message_text(request.project_id, &request.project_version, &request.data);
    let unsigned = DeviceRequest { signature: None, ..request.clone() };
    assert_eq!(apinode::parse(text.as_bytes()), Ok(unsigned));
    if let Ok(verified) = request.authenticate() {
        assert!(verified.into_message().verify(|_| false).is_ok());
    }
});
