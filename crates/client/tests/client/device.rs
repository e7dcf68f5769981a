//! Devices of each API against nodes that fail.

use std::time::{Duration, Instant};

use crate::common::{Mode, Node, PROJECT, ioid, key, nowhere, options, server_identity, signing};
use lockstep_client::{ClientError, ClientOptions, Device, DeviceOptions, Outcome};
use lockstep_identity::Document;
use lockstep_types::MessageId;

const SAFE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_message_goes_to_the_next_node_with_the_same_bytes() {
    let nodes = [Node::start().await, Node::start().await, Node::start().await, Node::start().await];
    nodes[0].fails(Mode::Stopping, 1);
    nodes[1].fails(Mode::Unknown, 1);
    nodes[2].fails(Mode::Lost, 1);
    let mut urls = vec![nowhere().await];
    urls.extend(nodes.iter().map(Node::url));
    let device = signing(&urls, options(SAFE));
    let receipt = device.submit(PROJECT, "0.1", "21.5").await.unwrap();
    assert_eq!((receipt.attempts, &receipt.url, receipt.sequence.unwrap().0), (5, &nodes[3].url(), 1));
    assert_eq!(nodes[3].data(), ["21.5"]);
    let bodies: Vec<_> = nodes.iter().map(|node| node.state.lock().requests[0].1.clone()).collect();
    assert!(bodies.windows(2).all(|two| two[0] == two[1]));
    assert_eq!(
        device.submit(PROJECT, "0.1", "21.6").await.unwrap().attempts,
        1,
        "it stays with the node that answered"
    );
}

#[tokio::test]
async fn a_busy_node_is_not_asked_before_the_time_that_it_names() {
    let node = Node::start().await;
    node.fails(Mode::Busy, 1);
    let device = signing(&[node.url()], options(SAFE));
    let started = Instant::now();
    assert_eq!(device.submit(PROJECT, "0.1", "x").await.unwrap().attempts, 2);
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn who_gives_up_says_what_is_known() {
    let node = Node::start().await;
    // One attempt, and no time for another: what is cut off half-way is unknown, rightly, whatever the node would say.
    let patient = Duration::from_secs(60);
    let client = ClientOptions { backoff_first: patient, backoff_max: patient, ..options(SAFE).client };
    let give_up = || DeviceOptions { give_up_after: SAFE, client: client.clone(), ..options(SAFE) };
    for (mode, outcome) in [
        (Mode::Busy, Outcome::NotTaken),
        (Mode::Stopping, Outcome::NotTaken),
        (Mode::Unknown, Outcome::Unknown),
        (Mode::Lost, Outcome::Unknown),
    ] {
        node.fails(mode, usize::MAX);
        let error = signing(&[node.url()], give_up()).submit(PROJECT, "0.1", "x").await.unwrap_err();
        assert!(matches!(error, ClientError::Exhausted { .. }), "{error}");
        assert_eq!(error.outcome(), outcome, "{mode:?}: {error}");
    }
    let error = signing(&[nowhere().await], give_up()).submit(PROJECT, "0.1", "x").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotTaken);
    assert!(error.to_string().contains("it was not ordered"), "{error}");
}

#[tokio::test]
async fn after_the_retry_window_a_message_is_looked_up_and_not_sent_again() {
    let node = Node::start().await;
    node.fails(Mode::Silent, 1);
    let receipt = signing(&[node.url()], options(Duration::ZERO)).submit(PROJECT, "0.1", "x").await.unwrap();
    assert_eq!((receipt.sequence.unwrap().0, receipt.duplicate), (1, Some(true)));
    assert_eq!(node.data(), ["x"]);
    assert_eq!(node.count("/message"), 1);
}

#[tokio::test]
async fn after_the_retry_window_a_message_that_is_not_there_is_sent_again() {
    let node = Node::start().await;
    node.fails(Mode::Lost, 1);
    let receipt = signing(&[node.url()], options(Duration::ZERO)).submit(PROJECT, "0.1", "x").await.unwrap();
    assert_eq!((receipt.attempts, receipt.duplicate), (2, Some(false)));
    assert_eq!((node.data(), node.count("/api/messages/")), (vec!["x".to_owned()], 1));
}

#[tokio::test]
async fn a_node_that_cannot_confirm_it_is_not_believed_that_a_message_is_absent() {
    let node = Node::start().await;
    node.fails(Mode::Lost, 1);
    node.state.lock().ready = false;
    let give_up = DeviceOptions { give_up_after: Duration::from_millis(300), ..options(Duration::ZERO) };
    let error = signing(&[node.url()], give_up).submit(PROJECT, "0.1", "x").await.unwrap_err();
    assert_eq!((error.outcome(), node.count("/message")), (Outcome::Unknown, 1));
    assert!(node.count("/api/messages/") >= 1);
}

#[tokio::test]
async fn where_one_node_cannot_confirm_it_the_next_one_is_asked() {
    let (first, second) = (Node::start().await, Node::start().await);
    first.fails(Mode::Lost, 1);
    first.state.lock().ready = false;
    let device = signing(&[first.url(), second.url()], options(Duration::ZERO));
    let receipt = device.submit(PROJECT, "0.1", "x").await.unwrap();
    assert_eq!((receipt.attempts, receipt.duplicate), (2, Some(false)));
    assert_eq!((first.count("/api/messages/"), second.count("/api/messages/")), (1, 1));
}

#[tokio::test]
async fn a_refusal_after_an_unknown_outcome_is_checked_first() {
    let (first, second) = (Node::start().await, Node::start().await);
    first.fails(Mode::Silent, 1);
    second.fails(Mode::Forbidden, usize::MAX);
    let device = signing(&[first.url(), second.url()], options(SAFE));
    assert_eq!(device.submit(PROJECT, "0.1", "x").await.unwrap().sequence.unwrap().0, 1);
    first.fails(Mode::Forbidden, usize::MAX);
    let error = device.submit(PROJECT, "0.1", "y").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 403, .. }), "{error}");
}

#[tokio::test]
async fn a_task_has_a_nonce_of_its_own_and_equal_payloads_are_two_tasks() {
    let node = Node::start().await;
    let device = Device::builder([node.url()]).options(options(SAFE)).signing_tasks(key(), vec![]).unwrap();
    let first = device.submit(PROJECT, "", "{\"t\": 1}").await.unwrap();
    let second = device.submit(PROJECT, "", "{\"t\": 1}").await.unwrap();
    assert!(first.task_id.is_some() && first.task_id != second.task_id);
    let ordered = node.state.lock().ordered.clone();
    assert_ne!(ordered[0].0, ordered[1].0);
}

#[tokio::test]
async fn an_encrypting_device_keeps_document_and_token_until_the_node_has_other_keys() {
    let node = Node::start().await;
    let identity = ioid();
    node.state.lock().device = Some(Document::parse(identity.document().as_bytes()).unwrap());
    let device = Device::builder([node.url()]).options(options(SAFE)).encrypting(identity).unwrap();
    let receipt = device.submit(PROJECT, "0.1", "one \"quoted\"").await.unwrap();
    let id = receipt.message_id.unwrap();
    assert_eq!(id, MessageId(node.state.lock().ordered[0].0.0));
    device.submit(PROJECT, "0.1", "two").await.unwrap();
    assert_eq!((node.count("/didDoc"), node.count("/issue_vc")), (1, 1));
    node.state.lock().server = server_identity();
    device.submit(PROJECT, "0.1", "three").await.unwrap();
    assert_eq!((node.count("/didDoc"), node.count("/issue_vc")), (2, 2));
    assert_eq!(node.data(), ["one \"quoted\"", "two", "three"]);
    assert!(node.state.lock().authorizations.iter().all(|a| a.starts_with("Bearer eyJ")));
    let states = device.states(id).await.unwrap();
    assert_eq!((&*states.message_id, &*states.states[0].state), (&*id.to_string(), "received"));
    // Nothing of what was said went over the wire.
    let requests = node.state.lock().requests.clone();
    assert!(!requests.iter().any(|(_, body)| String::from_utf8_lossy(body).contains("quoted")));
}

#[tokio::test]
async fn an_unknown_or_unpermitted_device_is_told_so() {
    let node = Node::start().await;
    let identity = ioid();
    let document = Document::parse(identity.document().as_bytes()).unwrap();
    let device = Device::builder([node.url()]).options(options(SAFE)).encrypting(identity).unwrap();
    let error = device.submit(PROJECT, "0.1", "x").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 403, .. }), "{error}");
    node.state.lock().device = Some(document);
    node.state.lock().permitted = false;
    let error = device.submit(PROJECT, "0.1", "x").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 401, .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotTaken);
}

#[tokio::test]
async fn an_encrypted_message_whose_answer_is_lost_is_found() {
    let node = Node::start().await;
    let identity = ioid();
    node.state.lock().device = Some(Document::parse(identity.document().as_bytes()).unwrap());
    node.fails(Mode::Silent, 1);
    let device = Device::builder([node.url()]).options(options(Duration::ZERO)).encrypting(identity).unwrap();
    assert_eq!(device.submit(PROJECT, "0.1", "x").await.unwrap().duplicate, Some(true));
    assert_eq!(node.data(), ["x"]);
}
