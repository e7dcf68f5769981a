//! The published vectors over HTTP: what the reference accepts and refuses, and whom it takes for the device.

use lockstep_identity::{apinode, signed_body};
use lockstep_testkit::check::from_base64;
use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::outputs::{count_sqlite, read_sqlite};
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, Signature};
use serde_json::Value;

use crate::{SOON, binary};

const ACCEPT: &str = include_str!("../../../identity/tests/vectors/requests_accept.json");
const REJECT: &str = include_str!("../../../identity/tests/vectors/requests_reject.json");
/// Order of secp256k1's group.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba, 0xae, 0xdc,
    0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];

fn cases(text: &str) -> Vec<Value> {
    let mut whole: Value = serde_json::from_str(text).unwrap();
    let Value::Array(cases) = whole["cases"].take() else { panic!("no cases") };
    assert!(!cases.is_empty());
    cases
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_else(|| panic!("no {member} in {value}"))
}

fn body(case: &Value) -> Vec<u8> {
    from_base64(text(case, "body_base64")).unwrap()
}

/// The other signature that the same key has for the same text: (R, n - S, V xor 1).
fn other_form(signature: &Signature) -> Signature {
    let mut other = *signature;
    let mut borrow = 0_i16;
    for i in (0..32).rev() {
        let difference = i16::from(ORDER[i]) - i16::from(signature.0[32 + i]) - borrow;
        borrow = i16::from(difference < 0);
        other.0[32 + i] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    other.0[64] ^= 1;
    other
}

#[tokio::test]
async fn requests_that_the_reference_accepts_are_ordered_as_their_devices() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let address = cluster.node(0).address();
    let mut accepted = 0;
    for case in cases(ACCEPT) {
        let (name, class) = (text(&case, "name"), text(&case, "class"));
        let answer = post_message(address, &body(&case)).await;
        match class {
            "must" => assert_eq!(answer.status, 200, "{name}: {}", answer.text()),
            "unit" => assert_eq!(answer.status, 400, "{name}: {}", answer.text()),
            // What the reference takes by the leave of its JSON reader: if we take it, then as the same device.
            _ => assert!([200, 400].contains(&answer.status), "{name}: {}", answer.text()),
        }
        if answer.status != 200 {
            continue;
        }
        accepted += 1;
        let id = text(&answer.json(), "messageID").to_owned();
        let message = get(address, &format!("/api/messages/{id}")).await.json();
        assert_eq!(text(&message, "device"), text(&case, "recovered_address"), "{name}");
        assert_eq!(from_base64(text(&message, "data")).unwrap(), text(&case, "data").as_bytes(), "{name}");
        assert_eq!(text(&message, "project_version"), text(&case, "projectVersion"), "{name}");
        assert_eq!(message["project_id"].to_string(), text(&case, "projectID"), "{name}");
    }
    println!("{accepted} accepted");
    every_task_in_sqlite_is_signed(&cluster).await;
}

async fn every_task_in_sqlite_is_signed(cluster: &Cluster) {
    let (path, signer) = (cluster.sqlite(0), cluster.task_signer());
    let ordered = cluster.status(0).await.unwrap().head.sequence.0;
    eventually("all tasks are in SQLite", SOON, async || match count_sqlite(&path) {
        Ok(count) if count == ordered => Ok(()),
        other => Err(format!("{other:?} of {ordered}")),
    })
    .await;
    let rows = read_sqlite(&path, "SQLite").unwrap();
    for task in &rows.tasks {
        assert_eq!(rows.signer_of(task).unwrap(), signer, "task {}", task.number);
    }
    println!("{} tasks signed by {signer}", rows.tasks.len());
}

#[tokio::test]
async fn requests_that_the_reference_refuses_are_refused_with_its_status_and_change_nothing() {
    // As in the reference, a signature is needed.
    let params = NetworkParams { allow_unsigned: false, ..open_params() };
    let cluster = Cluster::start(binary(), ClusterOptions::of(1).with_params(params)).await;
    let before = cluster.status(0).await.unwrap().head;
    for case in cases(REJECT) {
        let name = text(&case, "name");
        let answer = post_message(cluster.node(0).address(), &body(&case)).await;
        assert_eq!(u64::from(answer.status), case["http_status"].as_u64().unwrap(), "{name}: {}", answer.text());
        let error = answer.json();
        assert!(!text(&error, "error").is_empty() && !text(&error, "code").is_empty(), "{name}: {error}");
    }
    assert_eq!(cluster.status(0).await.unwrap().head, before);
}

#[tokio::test]
async fn another_form_of_the_signature_is_the_same_message_and_another_signer_is_not() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let address = cluster.node(0).address();
    for case in cases(ACCEPT).iter().filter(|case| case["class"] == "must") {
        let name = text(case, "name");
        let first = post_message(address, &body(case)).await.json();
        let request = apinode::parse(&body(case)).unwrap();
        let signature = request.signature.unwrap();
        let signed =
            |signature: &Signature| signed_body(request.project_id, &request.project_version, &request.data, signature);
        let other = other_form(&signature);
        assert_ne!(other, signature);
        let spelled = signed(&signature).replace("\"signature\":\"0x", "\"Signature\" : \"0X");
        for (what, form) in [("the other S", signed(&other)), ("another spelling", spelled)] {
            let again = post_message(address, form.as_bytes()).await;
            assert_eq!(again.status, 200, "{name}, {what}: {}", again.text());
            let again = again.json();
            assert_eq!(again["duplicate"], true, "{name}, {what}");
            for member in ["messageID", "sequence", "height"] {
                assert_eq!(again[member], first[member], "{name}, {what}: {member}");
            }
        }
        let mut stranger = signature;
        stranger.0[64] ^= 1;
        let answer = post_message(address, signed(&stranger).as_bytes()).await;
        if answer.status == 200 {
            assert_ne!(answer.json()["messageID"], first["messageID"], "{name}");
        } else {
            assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        }
    }
}
