//! No input makes the reader panic, and what it accepts agrees with a second reader.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use lockstep_identity::{DeviceRequest, TaskQuery, apinode};
use proptest::prelude::*;

fn vector_bodies() -> Vec<Vec<u8>> {
    ["requests_accept.json", "requests_reject.json"]
        .iter()
        .flat_map(|file| {
            let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
            let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let decode = |c: &serde_json::Value| {
                base64::engine::general_purpose::STANDARD.decode(c["body_base64"].as_str().unwrap()).unwrap()
            };
            whole["cases"].as_array().unwrap().iter().map(decode).collect::<Vec<_>>()
        })
        .collect()
}

/// Whatever is accepted must survive being written and read again.
fn check(body: &[u8]) -> Result<(), TestCaseError> {
    let _ = TaskQuery::parse(body);
    let Ok(request) = apinode::parse(body) else { return Ok(()) };
    prop_assert!(request.project_id.0 > 0 && !request.data.is_empty() && !request.project_version.is_empty());
    let _ = request.check_limits(1024);
    let text = lockstep_types::w3bstream::message_text(request.project_id, &request.project_version, &request.data);
    let unsigned = DeviceRequest { signature: None, ..request.clone() };
    prop_assert_eq!(apinode::parse(text.as_bytes()), Ok(unsigned));
    if let Ok(verified) = request.authenticate() {
        prop_assert!(verified.into_message().verify(|_| false).is_ok());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&body)?;
    }

    #[test]
    fn arbitrary_json_like_text_never_panics(body in r#"[ \{\}\[\],:"\\/u0-9a-fdtnrul.eE+-]{0,120}"#) {
        check(body.as_bytes())?;
        check(format!("{{\"projectID\":1,\"data\":{body}").as_bytes())?;
    }

    #[test]
    fn mutated_vectors_never_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..4), cut in 0_usize..4,
    ) {
        let bodies = vector_bodies();
        let mut body = which.get(&bodies).clone();
        let from = at.index(body.len());
        let to = (from + cut).min(body.len());
        body.splice(from..to, bytes);
        check(&body)?;
    }

    #[test]
    fn strings_decode_as_in_serde_json(data in ".{1,60}", version in "[^\u{0}]{1,20}", id in 1_u64..) {
        let body = serde_json::json!({ "data": data, "other": [data, { "a": null }], "projectVersion": version, "projectID": id });
        let request = apinode::parse(body.to_string().as_bytes()).unwrap();
        prop_assert_eq!((request.data, request.project_version, request.project_id.0), (data, version, id));
    }

    #[test]
    fn what_serde_json_refuses_is_refused(body in r#"\{("a":(1|-0|1\.5e3|"x\\n"|\[[0-9, ]{0,6}\]|\{\}|null|tru?e|0[0-9]),?){0,3}\}"#) {
        // Required members are put before, so that only the grammar decides.
        let rest = &body[1..];
        let full = format!("{{\"projectID\":1,\"projectVersion\":\"1\",\"data\":\"x\",{rest}");
        let theirs = serde_json::from_str::<serde_json::Value>(&full).is_ok();
        prop_assert_eq!(apinode::parse(full.as_bytes()).is_ok(), theirs, "{}", full);
    }
}
