//! No input makes the reader panic, and what it accepts agrees with a second reader.

use base64::Engine as _;
use lockstep_identity::{
    Curve, DeviceRequest, Did, Document, ServerIdentity, ServerSecret, SproutRequest, TaskQuery, TaskRequest, apinode,
    envelope, sprout,
};
use proptest::prelude::*;
use std::sync::LazyLock;

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

/// The server of the vectors' negative cases, whose key and tokens the mutated texts are about.
static SERVER: LazyLock<ServerIdentity> = LazyLock::new(|| {
    let secret = ioconnect("negative")["server"]["jwk_secret_base64"].as_str().unwrap().to_owned();
    ServerIdentity::new(ServerSecret::from_base64(&secret, Curve::Secp256k1).unwrap())
});

/// A message and a token that are accepted.
static UNALTERED: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let negative = ioconnect("negative");
    let find = |name: &str| negative["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone();
    let text = |name, member: &str| find(name)[member].as_str().unwrap().as_bytes().to_vec();
    (text("base_ok", "jwe"), text("token_ok", "token"))
});

/// Messages, tokens, documents and plaintexts of the ioConnect vectors, and requests of the 2025 API.
static TEXTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut texts = Vec::new();
    collect(&ioconnect("negative"), &mut texts);
    collect(&ioconnect("did_documents"), &mut texts);
    collect(&ioconnect("case_07"), &mut texts);
    let key = lockstep_types::SigningKey::from_bytes([5; 32]).unwrap();
    for payload in [&b"{\"timestamp\":1,\"t\":\"<21.5>\"}"[..], b"[1,2.5e3]", b"\x00\xff"] {
        let project_id = lockstep_types::ProjectId(7);
        let content = lockstep_identity::TaskContent { nonce: 1, project_id, project_version: "1", payload };
        texts.push(lockstep_identity::sign_task(&key, content, &[]).unwrap());
    }
    texts
});

fn ioconnect(file: &str) -> serde_json::Value {
    let path = format!("{}/tests/vectors/ioconnect/{file}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn collect(value: &serde_json::Value, texts: &mut Vec<Vec<u8>>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                match value.as_str() {
                    Some(text) if ["jwe", "token", "did_doc", "plaintext", "did"].contains(&&name[..]) => {
                        texts.push(text.into());
                    }
                    _ => collect(value, texts),
                }
            }
        }
        serde_json::Value::Array(entries) => entries.iter().for_each(|entry| collect(entry, texts)),
        _ => {}
    }
}

/// Every parser sees every text; what one accepts must mean the same when written again.
fn check_all(body: &[u8]) -> Result<(), TestCaseError> {
    check(body)?;
    if let Ok(text) = std::str::from_utf8(body) {
        if let Ok(did) = text.parse::<Did>() {
            prop_assert_eq!(did.to_string(), text);
        }
        if let Ok(token) = SERVER.verify_token(text) {
            prop_assert_eq!(token.subject.to_string(), "did:io:0x521341c9bbda183cbe03785b86caee650c3fcbfc");
        }
        let _ = sprout::token_of(Some(text), None);
    }
    if let Ok(document) = Document::parse(body) {
        prop_assert_eq!(document.authentication.did(), document.did);
    }
    if let Ok(opened) = SERVER.decrypt_request(body) {
        prop_assert!(opened.plaintext.len() <= envelope::ENVELOPE_BYTES_MAX);
    }
    let _ = sprout::parse_token_request(body);
    if let Ok(request) = SproutRequest::parse(body) {
        prop_assert!(request.project_id.0 > 0 && !request.data.is_empty() && !request.project_version.is_empty());
    }
    if let Ok(request) = TaskRequest::parse(body) {
        let _ = request.candidates(&[]);
        let timestamp = [lockstep_identity::SignedKey::new("timestamp").unwrap()];
        let _ = request.digest(&timestamp);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn mutated_texts_of_devices_never_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..4), cut in 0_usize..4,
    ) {
        let mut body = which.get(&TEXTS[..]).clone();
        let from = at.index(body.len());
        let to = (from + cut).min(body.len());
        body.splice(from..to, bytes);
        check_all(&body)?;
    }

    #[test]
    fn texts_joined_of_two_never_panic(
        left in any::<prop::sample::Index>(), right in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(), from in any::<prop::sample::Index>(),
    ) {
        let (left, right) = (left.get(&TEXTS[..]), right.get(&TEXTS[..]));
        check_all(&[&left[..cut.index(left.len())], &right[from.index(right.len())..]].concat())?;
    }

    #[test]
    fn an_altered_message_or_token_never_passes(
        at in any::<prop::sample::Index>(), to in any::<u8>(),
    ) {
        let (jwe, token) = &*UNALTERED;
        let mut altered = jwe.clone();
        altered[at.index(jwe.len())] = to;
        if let Ok(opened) = SERVER.decrypt_request(&altered) {
            prop_assert_eq!(opened.plaintext, SERVER.decrypt_request(jwe).unwrap().plaintext);
        }
        let mut altered = token.clone();
        altered[at.index(token.len())] = to;
        let passes = std::str::from_utf8(&altered).is_ok_and(|text| SERVER.verify_token(text).is_ok());
        prop_assert_eq!(passes, altered == *token);
    }
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
