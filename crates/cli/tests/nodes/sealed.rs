//! Devices that show a token and encrypt, those of the API of 2025, and what owners let them do, on a network of three.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use lockstep_identity::{
    AgreementKey, Curve, DeviceIdentity, Document, KeyNumber, MasterKey, PartySecret, TaskContent, sign_task,
};
use lockstep_testkit::cluster::{Cluster, ClusterOptions, change_config};
use lockstep_testkit::http::{Answer, get, post_message, request, send};
use lockstep_testkit::process::run;
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, ProjectId, ProjectSettings, SigningKey};
use rand::SeedableRng as _;
use serde_json::{Value, json};

use crate::{SOON, binary};

const PROJECT: ProjectId = ProjectId(7);

fn owner() -> SigningKey {
    SigningKey::from_bytes([0x77; 32]).unwrap()
}

/// A network whose projects belong to [`owner`] and take registered devices.
pub fn options(projects: impl IntoIterator<Item = u64>) -> ClusterOptions {
    let projects: Vec<ProjectId> = projects.into_iter().map(ProjectId).collect();
    let params = NetworkParams {
        projects: projects.iter().map(|id| (*id, ProjectSettings::default())).collect(),
        owners: projects.iter().map(|id| (*id, owner().address())).collect(),
        public_payloads: true,
        ..NetworkParams::default()
    };
    ClusterOptions::of(3).with_params(params)
}

pub fn case(number: usize) -> Value {
    let vectors = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../identity/tests/vectors/ioconnect");
    let text = std::fs::read_to_string(vectors.join(format!("case_{number:02}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn scalar(key: &Value) -> [u8; 32] {
    hex::decode(key["d_hex"].as_str().unwrap()).unwrap().try_into().unwrap()
}

/// The device of a case, with its keys.
pub fn device(case: &Value) -> DeviceIdentity {
    let device = &case["device"];
    let number = |key: &Value| KeyNumber::new(u32::try_from(key["key_id"].as_u64().unwrap()).unwrap()).unwrap();
    let secret = PartySecret::new(
        MasterKey::from_scalar(Curve::Secp256k1, &scalar(&device["master"])).unwrap(),
        AgreementKey::from_scalar(&scalar(&device["key_agreement"])).unwrap(),
    );
    DeviceIdentity::with_numbers(secret, number(&device["master"]), number(&device["key_agreement"]))
}

pub async fn sealed(address: SocketAddr, method: &str, path: &str, token: &str, body: &str) -> Answer {
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    send(address, text.as_bytes()).await.unwrap()
}

/// `lockstep <what> --project P ...`, signed by the owner.
fn order(cluster: &Cluster, node: usize, what: [&str; 2], project: ProjectId, rest: &[&str]) -> Result<(), String> {
    let key = cluster.directory().join("owner.key");
    std::fs::write(&key, hex::encode(owner().secret_bytes())).unwrap();
    let (project, url) = (project.to_string(), cluster.node(node).url());
    let output = Command::new(binary())
        .args(what)
        .args(["--url", &url, "--project", &project, "--key-file", key.to_str().unwrap()])
        .args(rest)
        .output()
        .unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Orders are known once every member knows the rules for them.
pub async fn register(cluster: &Cluster, project: ProjectId, device: &str) {
    eventually("the device is registered", SOON, async || order(cluster, 1, ["devices", "add"], project, &[device]))
        .await;
}

pub fn document_file(cluster: &Cluster, text: &str) -> String {
    let file = cluster.directory().join("did.json");
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

async fn sequence(cluster: &Cluster, node: usize) -> u64 {
    get(cluster.node(node).address(), "/api/status").await.json()["head"]["sequence"].as_u64().unwrap()
}

async fn applied(cluster: &Cluster, node: usize, at_least: u64) {
    let path = format!("/api/status?min_sequence={at_least}");
    assert_eq!(get(cluster.node(node).address(), &path).await.status, 200);
}

pub fn random() -> rand::rngs::StdRng {
    rand::rngs::StdRng::seed_from_u64(7)
}

#[tokio::test]
async fn a_device_that_encrypts_is_served_by_every_node_until_its_token_is_revoked() {
    let cluster = Cluster::start(binary(), options([7, 8])).await;
    let (case, address) = (case(1), |node: usize| cluster.node(node).address());
    let device = device(&case);
    let did = case["device"]["did"].as_str().unwrap();
    let ask = json!({ "clientID": did }).to_string();
    let refused = request(address(0), "POST", "/issue_vc", ask.as_bytes()).await.unwrap();
    assert_eq!(refused.status, 403, "{}", refused.text());
    register(&cluster, PROJECT, &document_file(&cluster, case["device"]["did_doc"].as_str().unwrap())).await;

    let document = get(address(2), "/didDoc").await.text();
    assert_eq!(document, case["server"]["did_doc"].as_str().unwrap());
    let server = Document::parse(document.as_bytes()).unwrap();
    let seal = |text: &str| device.encrypt_request(&server, text, &mut random()).unwrap();
    let open = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        String::from_utf8(device.decrypt_answer(answer.text().as_bytes()).unwrap().plaintext).unwrap()
    };
    let token = async |node: usize| open(&request(address(node), "POST", "/issue_vc", ask.as_bytes()).await.unwrap());
    // Every node sees the device once it has applied the order.
    eventually("every node knows the device", SOON, async || {
        let known = request(address(0), "POST", "/issue_vc", ask.as_bytes()).await.unwrap();
        (known.status == 200).then_some(()).ok_or_else(|| known.text())
    })
    .await;
    let first = token(0).await;

    let message = |project: u64| json!({"projectID": project, "projectVersion": "1", "data": "21.5"}).to_string();
    let envelope = seal(&message(7));
    let answer = sealed(address(1), "POST", "/message", &first, &envelope).await;
    let id = serde_json::from_str::<Value>(&open(&answer)).unwrap()["messageID"].as_str().unwrap().to_owned();
    applied(&cluster, 2, 1).await;
    let states = sealed(address(2), "GET", &format!("/message/{id}"), &first, "").await;
    let states: Value = serde_json::from_str(&open(&states)).unwrap();
    assert_eq!((&states["messageID"], &states["states"][1]["state"]), (&json!(id), &json!("packed")));
    let view = get(address(2), &format!("/api/messages/{id}")).await.json();
    assert_eq!(
        (&view["evidence"]["kind"], &view["device"]),
        (&json!("envelope"), &json!(did.trim_start_matches("did:io:")))
    );
    // The token of the vectors, which the reference's server issued long ago with the same secret.
    let old = case["token"]["token"].as_str().unwrap();
    assert_eq!(sealed(address(2), "POST", "/message", old, &envelope).await.status, 200, "a retry");

    let before = sequence(&cluster, 0).await;
    let mut altered: Value = serde_json::from_str(&envelope).unwrap();
    altered["ciphertext"] = json!(format!("A{}", &altered["ciphertext"].as_str().unwrap()[1..]));
    let forged = format!("{}AAAA", &first[..first.len() - 4]);
    let other_token = self::case(2)["token"]["token"].as_str().unwrap().to_owned();
    for (token, body, status) in [
        (&first, altered.to_string(), 400),
        (&first, seal("{}"), 400),
        (&first, message(7), 400),
        (&first, seal(&message(8)), 401),
        (&first, seal(&message(9)), 401),
        (&forged, envelope.clone(), 401),
        (&other_token, envelope.clone(), 401),
    ] {
        let answer = sealed(address(1), "POST", "/message", token, &body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    order(&cluster, 2, ["devices", "revoke"], PROJECT, &[did]).unwrap();
    for node in 0..3 {
        eventually("the token is refused", SOON, async || {
            let answer = sealed(address(node), "POST", "/message", &first, &seal(&message(7))).await;
            (answer.status == 401).then_some(()).ok_or_else(|| answer.text())
        })
        .await;
    }
    assert_eq!(sequence(&cluster, 0).await, before, "nothing of all this was ordered");
    let second = token(1).await;
    let again = json!({"projectID": 7, "projectVersion": "1", "data": "22"}).to_string();
    assert_eq!(sealed(address(0), "POST", "/message", &second, &seal(&again)).await.status, 200);
    order(&cluster, 0, ["devices", "remove"], PROJECT, &[did]).unwrap();
    assert_eq!(sealed(address(0), "POST", "/message", &second, &seal(&message(7))).await.status, 401);
    assert_eq!(request(address(0), "POST", "/issue_vc", ask.as_bytes()).await.unwrap().status, 403);
    assert_eq!(sequence(&cluster, 0).await, before + 1);
    cluster.assert_no_panics();
}

/// What devices sent to the server of a case.
fn to_server(case: &Value) -> Vec<Value> {
    let messages = case["messages"].as_array().unwrap().iter();
    messages.filter(|message| message["direction"] == "device_to_server").cloned().collect()
}

fn project_of(message: &Value) -> Option<u64> {
    serde_json::from_str::<Value>(message["plaintext"].as_str().unwrap()).ok()?["projectID"].as_u64()
}

fn projects_of(cases: &[Value]) -> Vec<u64> {
    cases.iter().flat_map(to_server).filter_map(|message| project_of(&message)).chain([7]).collect()
}

/// Wants that a node which has the server's secret answers every request of a case as the reference did.
async fn all_answered(cluster: &Cluster, node: usize, case: &Value) {
    let (device, token) = (device(case), case["token"]["token"].as_str().unwrap());
    let file = document_file(cluster, case["device"]["did_doc"].as_str().unwrap());
    for message in to_server(case) {
        let wanted = project_of(&message).map_or(PROJECT, ProjectId);
        register(cluster, wanted, &file).await;
        let jwe = message["jwe"].as_str().unwrap();
        eventually("the message is answered", SOON, async || {
            let answer = sealed(cluster.node(node).address(), "POST", "/message", token, jwe).await;
            match (answer.status, project_of(&message)) {
                (400, None) => Ok(()),
                (200, Some(_)) => device.decrypt_answer(answer.text().as_bytes()).map(drop).map_err(|e| e.to_string()),
                (status, _) => Err(format!("{}: {status} {}", message["name"], answer.text())),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn every_encrypted_request_of_the_vectors_is_answered() {
    for numbers in [[1, 2, 3], [4, 5, 6], [7, 7, 7]] {
        let cases: Vec<Value> = numbers.iter().map(|number| case(*number)).collect();
        let mut cluster = Cluster::prepare(binary(), options(projects_of(&cases)));
        for (node, case) in cases.iter().enumerate() {
            let secret = case["server"]["jwk_secret_base64"].as_str().unwrap();
            std::fs::write(cluster.node(node).process.home().join("server.secret"), secret).unwrap();
        }
        cluster.start_all().await;
        for (node, case) in cases.iter().enumerate() {
            all_answered(&cluster, node, case).await;
        }
    }
}

/// A server of an older deployment, whose master key is on P-256.
#[tokio::test]
async fn a_secret_on_p256_is_taken_where_the_node_is_told_so() {
    let case = case(8);
    let mut cluster = Cluster::prepare(binary(), options(projects_of(std::slice::from_ref(&case))));
    let master = MasterKey::from_scalar(Curve::P256, &scalar(&case["server"]["master"])).unwrap();
    let agreement = AgreementKey::from_scalar(&scalar(&case["server"]["key_agreement"])).unwrap();
    let secret = PartySecret::new(master, agreement).to_base64();
    let file = cluster.directory().join("old.secret");
    std::fs::write(&file, &*secret).unwrap();
    let home = |node: usize| cluster.node(node).process.home().to_owned();
    let rotate = |node: usize, rest: &[&str]| {
        let place = home(node).display().to_string();
        let mut command = Command::new(binary());
        let output = command.args(["keys", "rotate", "server", "--home", &place]).args(rest).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let p256 = |text: &str| format!("{text}\n[devices]\nserver_secret_curve = \"p256\"\n");
    // The first is told by its configuration, the second by the command that takes the secret over, and the third has the
    // secret from before a new one of the usual kind.
    change_config(&home(0), p256);
    std::fs::write(home(0).join("server.secret"), &*secret).unwrap();
    let did = case["server"]["did"].as_str().unwrap();
    assert!(rotate(1, &["--file", file.to_str().unwrap(), "--curve", "p256"]).contains(did));
    change_config(&home(2), p256);
    std::fs::write(home(2).join("server.secret"), &*secret).unwrap();
    assert!(!rotate(2, &["--curve", "secp256k1"]).contains(did));
    for (node, line) in [(0, "server: "), (1, "server: "), (2, "server, before: ")] {
        let shown = run(binary(), ["keys", "show", "--home", home(node).to_str().unwrap()]);
        assert!(shown.contains(&format!("{line}{did}")), "{shown}");
    }
    cluster.start_all().await;
    for node in 0..3 {
        all_answered(&cluster, node, &case).await;
    }
    for node in [0, 1] {
        let document = get(cluster.node(node).address(), "/didDoc").await.text();
        assert_eq!(document, case["server"]["did_doc"].as_str().unwrap());
    }
    cluster.assert_no_panics();
}

#[tokio::test]
async fn a_task_of_2025_is_taken_once_from_a_permitted_device() {
    let cluster = Cluster::start(binary(), options([7])).await;
    let address = |node: usize| cluster.node(node).address();
    let key = SigningKey::from_bytes([0x31; 32]).unwrap();
    let body = |nonce: u64, payload: &[u8]| {
        let content = TaskContent { nonce, project_id: PROJECT, project_version: "", payload };
        sign_task(&key, content, &[]).unwrap()
    };
    let post = async |node: usize, body: &[u8]| request(address(node), "POST", "/v1/task", body).await.unwrap();
    let refused = post(0, &body(1, b"{\"a\":1}")).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    register(&cluster, PROJECT, &key.address().to_string()).await;
    let first = eventually("the device is permitted", SOON, async || {
        let answer = post(0, &body(1, b"{\"a\":1}")).await;
        (answer.status == 200).then(|| answer.json()).ok_or_else(|| answer.text())
    })
    .await;
    let again = post(1, &body(1, b"{\"a\":1}")).await.json();
    assert_eq!((&again["taskID"], &again["duplicate"]), (&first["taskID"], &json!(true)));
    assert_eq!(post(2, &body(1, b"{\"a\":2}")).await.status, 409, "the nonce is used");
    assert_eq!(post(2, &body(2, b"\x00\xff")).await.status, 200);
    applied(&cluster, 2, 2).await;
    let states = get(address(2), &format!("/v1/task/{}", first["taskID"].as_str().unwrap())).await.json();
    assert_eq!((&states["projectID"], &states["states"][0]["state"]), (&json!(7), &json!("packed")));
    let signed = lockstep_identity::sign_body(&SigningKey::from_bytes([0x32; 32]).unwrap(), PROJECT, "1", "x");
    assert_eq!(post_message(address(1), signed.as_bytes()).await.status, 403, "an unknown device");
    assert_eq!(sequence(&cluster, 2).await, 2);
    cluster.assert_no_panics();
}

/// What the vectors leave open, and is taken here: see the unit tests of the same vectors. A message that names another
/// sender than the token is refused, though it can be opened.
const TAKEN: [&str; 4] = ["header_labels_say_ES_and_GCM", "wrong_apv", "epk_kid_missing", "epk_kid_zero"];

#[tokio::test]
async fn every_altered_message_and_token_of_the_vectors_is_refused_by_each_node_and_nothing_is_ordered() {
    let vectors = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../identity/tests/vectors/ioconnect");
    let negative: Value =
        serde_json::from_str(&std::fs::read_to_string(vectors.join("negative.json")).unwrap()).unwrap();
    let mut cluster = Cluster::prepare(binary(), options([5]));
    for node in 0..3 {
        let secret = negative["server"]["jwk_secret_base64"].as_str().unwrap();
        std::fs::write(cluster.node(node).process.home().join("server.secret"), secret).unwrap();
    }
    cluster.start_all().await;
    let (device, document) = (device(&negative), negative["device"]["did_doc"].as_str().unwrap());
    let server = Document::parse(negative["server"]["did_doc"].as_str().unwrap().as_bytes()).unwrap();
    register(&cluster, ProjectId(5), &document_file(&cluster, document)).await;
    let cases = negative["cases"].as_array().unwrap();
    // Two cases are about whoever else opens the message: to this server it is good.
    let to_us = |case: &Value| {
        let own = &negative["server"]["key_agreement"];
        case["recipient_kid"] == own["kid"] && case["recipient_d_hex"] == own["d_hex"]
    };
    let of = |kind: &'static str| cases.iter().filter(move |case| case["kind"] == kind);
    let good = of("token").find(|case| case["name"] == "token_ok").unwrap()["token"].as_str().unwrap();
    let reading = json!({"projectID": 5, "projectVersion": "0.1", "data": "for tokens"}).to_string();
    let post = async |node: usize, token: &str, body: &str| {
        sealed(cluster.node(node).address(), "POST", "/message", token, body).await
    };
    for node in 0..3 {
        eventually("the device is known", SOON, async || {
            let answer = post(node, good, &device.encrypt_request(&server, &reading, &mut random()).unwrap()).await;
            (answer.status == 200).then_some(()).ok_or_else(|| answer.text())
        })
        .await;
        let before = sequence(&cluster, node).await;
        let (mut taken, mut refused) = (0, 0);
        for case in of("jwe").filter(|case| to_us(case)) {
            let (name, jwe) = (case["name"].as_str().unwrap(), case["jwe"].as_str().unwrap());
            let answer = post(node, good, jwe).await;
            if case["expect"] == "accept" || TAKEN.contains(&name) {
                assert_eq!(answer.status, 200, "{name}: {}", answer.text());
                taken += 1;
            } else {
                assert!([400, 401].contains(&answer.status), "{name}: {} {}", answer.status, answer.text());
                refused += 1;
            }
        }
        assert_eq!((taken, refused), (8, 22));
        // Those that were taken have one content.
        assert!(sequence(&cluster, node).await <= before + 1);
        for case in of("token") {
            let (name, token) = (case["name"].as_str().unwrap(), case["token"].as_str().unwrap());
            let body = device.encrypt_request(&server, &reading, &mut random()).unwrap();
            let answer = post(node, token, &body).await;
            let wanted = if case["expect"] == "accept" { 200 } else { 401 };
            assert_eq!(answer.status, wanted, "{name}: {}", answer.text());
        }
    }
    cluster.assert_no_panics();
}
