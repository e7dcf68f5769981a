//! The published vectors, read from this crate's own copy.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lockstep_identity::{DeviceRequest, apinode};
use lockstep_types::signature::recover_address;
use lockstep_types::{Address, SigningKey, TaskId, w3bstream};
use serde_json::Value;

fn cases(file: &str, list: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut whole: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let Value::Array(cases) = whole[list].take() else { panic!("no {list} in {file}") };
    assert!(!cases.is_empty());
    cases
}

fn text<'a>(case: &'a Value, member: &str) -> &'a str {
    case[member].as_str().unwrap_or_else(|| panic!("{}: no {member}", case["name"]))
}

fn body(case: &Value) -> Vec<u8> {
    STANDARD.decode(text(case, "body_base64")).unwrap()
}

#[test]
fn accepted_requests_come_to_the_text_hash_and_address_of_the_reference() {
    for case in cases("requests_accept.json", "cases") {
        let name = text(&case, "name");
        let request: DeviceRequest = apinode::parse(&body(&case)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(request.project_id.to_string(), text(&case, "projectID"), "{name}");
        assert_eq!(request.project_version, text(&case, "projectVersion"), "{name}");
        assert_eq!(request.data, text(&case, "data"), "{name}");
        let signed = w3bstream::message_text(request.project_id, &request.project_version, &request.data);
        assert_eq!(signed, text(&case, "signed_json"), "{name}");
        let digest = w3bstream::message_digest(request.project_id, &request.project_version, &request.data);
        assert_eq!(hex::encode(digest), text(&case, "signed_hash"), "{name}");
        let expected: Address = text(&case, "recovered_address").parse().unwrap();
        let within_limits = request.check_limits(64 << 10).is_ok();
        assert_eq!(within_limits, text(&case, "class") != "unit", "{name}");
        assert_eq!(request.authenticate().unwrap().message().device, expected, "{name}");
    }
}

#[test]
fn refused_requests_are_refused() {
    for case in cases("requests_reject.json", "cases") {
        let name = text(&case, "name");
        let result = apinode::parse(&body(&case)).and_then(DeviceRequest::authenticate);
        let error = result.expect_err(name);
        assert!(!error.code().is_empty() && !error.to_string().is_empty(), "{name}");
    }
}

#[test]
fn our_signed_bodies_are_accepted_as_their_signers() {
    for case in cases("requests_accept.json", "cases") {
        let key = SigningKey::from_hex(text(&case, "private_key_hex")).unwrap();
        let request = apinode::parse(&body(&case)).unwrap();
        let again = lockstep_identity::sign_body(&key, request.project_id, &request.project_version, &request.data);
        let verified = apinode::parse(again.as_bytes()).unwrap().authenticate().unwrap();
        assert_eq!(verified.message().device.to_string(), text(&case, "signer_address"));
    }
}

#[test]
fn task_signatures_are_those_of_the_reference() {
    for case in cases("task_signatures.json", "tasks") {
        let name = text(&case, "name");
        let key = SigningKey::from_hex(text(&case, "private_key_hex")).unwrap();
        let id: TaskId = text(&case, "id").parse().unwrap();
        let project = lockstep_types::ProjectId(text(&case, "projectID").parse().unwrap());
        let device: Address = text(&case, "deviceID").parse().unwrap();
        let payloads: Vec<Vec<u8>> = case["payloads_hex"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| hex::decode(p.as_str().unwrap()).unwrap())
            .collect();
        let version = text(&case, "projectVersion");
        let parts = || payloads.iter().map(Vec::as_slice);
        assert_eq!(w3bstream::task_text(&id, project, version, &device, parts()), text(&case, "signed_json"), "{name}");
        let digest = w3bstream::task_digest(&id, project, version, &device, parts());
        assert_eq!(hex::encode(digest), text(&case, "signed_hash"), "{name}");
        let signature = key.sign(&digest);
        assert_eq!(hex::encode(signature.0), text(&case, "signature_hex"), "{name}");
        assert_eq!(recover_address(&digest, &signature).unwrap().to_string(), text(&case, "signer_address"), "{name}");
    }
}
