//! The outbox against nodes that go away and come back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Mode, Node, PROJECT, copies, ioid, nowhere, options, signing};
use lockstep_client::outbox::Drained;
use lockstep_client::{ClientError, Device, DeviceOptions, Outbox, OutboxError, OutboxOptions};
use lockstep_identity::Document;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn fill(outbox: &Outbox, device: &Device, count: usize) -> Vec<String> {
    (0..count)
        .map(|n| {
            let data = format!("reading {n}");
            outbox.enqueue(device, PROJECT, "0.1", &data).unwrap();
            data
        })
        .collect()
}

fn one_by_one(path: &Path) -> Outbox {
    Outbox::open_with(path, OutboxOptions { bulk_messages_max: 1, ..OutboxOptions::default() }).unwrap()
}

#[tokio::test]
async fn messages_that_waited_while_the_node_was_down_come_in_order() {
    let directory = tempfile::tempdir().unwrap();
    for bulk in [true, false] {
        let path = directory.path().join(bulk.to_string());
        let url = nowhere().await;
        let brief = DeviceOptions { give_up_after: Duration::from_millis(100), ..options(Duration::ZERO) };
        let device = signing(std::slice::from_ref(&url), brief);
        let outbox = Outbox::open(&path).unwrap();
        let sent = fill(&outbox, &device, 20);
        let error = outbox.drain(&device, |_, _| ()).await.unwrap_err();
        assert!(matches!(error, OutboxError::Client(ClientError::Exhausted { .. })), "{error}");
        drop(outbox);

        let node = Node::serve(TcpListener::bind(url.trim_start_matches("http://")).await.unwrap());
        node.state.lock().bulk = bulk;
        let outbox = Outbox::open(&path).unwrap();
        assert_eq!(outbox.waiting(), 20);
        let mut told = Vec::new();
        let device = signing(&[url], options(Duration::ZERO));
        let drained = outbox.drain(&device, |number, _| told.push(number.0)).await.unwrap();
        assert_eq!((drained, outbox.waiting()), (Drained { ordered: 20, refused: 0 }, 0));
        assert_eq!(node.data(), sent);
        assert_eq!(told, (1..=20).collect::<Vec<_>>());
        assert_eq!(node.count("/message"), if bulk { 1 } else { 21 }, "where there is no bulk, that is found out once");
        assert_eq!(node.count("/api/messages/"), 0, "nothing was sent before, and the file says so");
        drop(outbox);
        assert_eq!(Outbox::open(&path).unwrap().waiting(), 0);
    }
}

/// A write that was under way when the future was dropped ends on its own thread, and holds the file until then.
async fn open_again(path: &Path) -> Outbox {
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match Outbox::open(path) {
            Ok(outbox) => return outbox,
            Err(OutboxError::InUse { .. }) if std::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn what_was_ordered_but_not_answered_before_a_crash_is_not_sent_again() {
    let directory = tempfile::tempdir().unwrap();
    for (bulk, mode) in [(false, Mode::Silent), (true, Mode::Silent), (false, Mode::Lost), (true, Mode::Lost)] {
        let path = directory.path().join(format!("{bulk}{mode:?}"));
        let node = Node::start().await;
        node.state.lock().bulk = bulk;
        node.fails(mode, 1);
        let device = signing(&[node.url()], options(Duration::ZERO));
        let outbox = Outbox::open(&path).unwrap();
        let sent = fill(&outbox, &device, 5);
        // As a crash: the future is dropped as soon as the node has the request.
        let draining = outbox.drain(&device, |_, _| panic!("nothing was answered"));
        let arrived = async {
            while node.count("/message") == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            () = arrived => {}
            _ = draining => panic!("it cannot end"),
        }
        drop(outbox);
        let outbox = open_again(&path).await;
        assert_eq!(outbox.waiting(), 5);
        outbox.drain(&device, |_, _| ()).await.unwrap();
        assert_eq!(node.data(), sent, "{bulk} {mode:?}");
        assert!(node.count("/api/messages/") >= 1);
    }
}

#[tokio::test]
async fn unreliable_nodes_get_every_message_once() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start().await;
    node.state.lock().bulk = true;
    let device = signing(&[node.url()], options(Duration::ZERO));
    let outbox = Outbox::open(directory.path().join("outbox")).unwrap();
    let sent = fill(&outbox, &device, 12);
    for mode in [Mode::Silent, Mode::Lost, Mode::Half, Mode::Stopping] {
        node.fails(mode, 1);
        let brief = DeviceOptions { give_up_after: Duration::from_millis(1), ..options(Duration::ZERO) };
        let _ = outbox.drain(&signing(&[node.url()], brief), |_, _| ()).await;
    }
    node.fails(Mode::Good, 0);
    outbox.drain(&device, |_, _| ()).await.unwrap();
    let data = node.data();
    assert_eq!((copies(&data).len(), data.len()), (sent.len(), sent.len()), "{data:?}");
}

#[tokio::test]
async fn one_by_one_keeps_the_order_where_a_node_takes_only_some_of_many() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start().await;
    node.state.lock().bulk = true;
    node.fails(Mode::Half, usize::MAX);
    let device = signing(&[node.url()], options(Duration::ZERO));
    let outbox = one_by_one(&directory.path().join("one"));
    let sent = fill(&outbox, &device, 6);
    outbox.drain(&device, |_, _| ()).await.unwrap();
    assert_eq!((node.data(), node.count("/messages")), (sent.clone(), 0));
    node.state.lock().ordered.clear();
    let outbox = Outbox::open(directory.path().join("many")).unwrap();
    fill(&outbox, &device, 6);
    outbox.drain(&device, |_, _| ()).await.unwrap();
    let data = node.data();
    assert_eq!((copies(&data).len(), data.len()), (6, 6), "each once, in whatever order: {data:?}");
}

#[tokio::test]
async fn a_refused_message_is_set_aside_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    for bulk in [true, false] {
        let path = directory.path().join(bulk.to_string());
        let node = Node::start().await;
        node.state.lock().bulk = bulk;
        let device = signing(&[node.url()], options(Duration::ZERO));
        let outbox = Outbox::open(&path).unwrap();
        for data in ["one", "bad", "two"] {
            outbox.enqueue(&device, PROJECT, "0.1", data).unwrap();
        }
        let drained = outbox.drain(&device, |_, _| ()).await.unwrap();
        assert_eq!(drained, Drained { ordered: 2, refused: 1 });
        assert_eq!(node.data(), ["one", "two"]);
        let refused = std::fs::read_to_string(format!("{}.refused", path.display())).unwrap();
        let line: serde_json::Value = serde_json::from_str(refused.trim()).unwrap();
        assert!(line["number"] == 2 && line["body"].as_str().unwrap().contains("\"bad\""), "{line}");
        assert_eq!(outbox.waiting(), 0);
    }
}

#[tokio::test]
async fn a_device_that_is_not_permitted_keeps_its_messages() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start().await;
    node.fails(Mode::Forbidden, usize::MAX);
    let device = signing(&[node.url()], options(Duration::ZERO));
    let outbox = Outbox::open(directory.path().join("outbox")).unwrap();
    fill(&outbox, &device, 3);
    let error = outbox.drain(&device, |_, _| ()).await.unwrap_err();
    assert!(matches!(error, OutboxError::Client(ClientError::Refused { status: 403, .. })), "{error}");
    assert_eq!(outbox.waiting(), 3);
    node.fails(Mode::Good, 0);
    assert_eq!(outbox.drain(&device, |_, _| ()).await.unwrap().ordered, 3);
}

#[tokio::test]
async fn equal_messages_are_refused_unless_they_carry_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let device = signing(&[nowhere().await], options(Duration::ZERO));
    let outbox = Outbox::open(directory.path().join("outbox")).unwrap();
    outbox.enqueue(&device, PROJECT, "0.1", "21.5").unwrap();
    assert!(matches!(outbox.enqueue(&device, PROJECT, "0.1", "21.5"), Err(OutboxError::Repeats)));
    let named = |name: &str| format!("{{\"id\":\"{name}\",\"celsius\":21.5}}");
    outbox.enqueue_with(&device, PROJECT, "0.1", named).unwrap();
    outbox.enqueue_with(&device, PROJECT, "0.1", named).unwrap();
    assert_eq!(outbox.waiting(), 3);
    assert!(matches!(outbox.enqueue(&device, PROJECT, "", "x"), Err(OutboxError::Client(ClientError::Message(_)))));
}

#[tokio::test]
async fn an_encrypting_device_has_an_outbox_too_and_no_other_device_can_empty_it() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start().await;
    let identity = ioid();
    node.state.lock().device = Some(Document::parse(identity.document().as_bytes()).unwrap());
    let device = Device::builder([node.url()]).options(options(Duration::ZERO)).encrypting(identity).unwrap();
    let outbox = Outbox::open(directory.path().join("outbox")).unwrap();
    fill(&outbox, &device, 2);
    for other in
        [signing(&[node.url()], options(Duration::ZERO)), Device::builder([node.url()]).encrypting(ioid()).unwrap()]
    {
        let error = outbox.drain(&other, |_, _| ()).await.unwrap_err();
        assert!(matches!(error, OutboxError::Client(ClientError::Setup(_))), "{error}");
    }
    assert_eq!(outbox.drain(&device, |_, _| ()).await.unwrap().ordered, 2);
    assert_eq!(node.data(), ["reading 0", "reading 1"]);
}

#[tokio::test]
async fn a_running_outbox_sends_what_arrives_until_it_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start().await;
    let device = Arc::new(signing(&[node.url()], options(Duration::ZERO)));
    let outbox = Arc::new(Outbox::open(directory.path().join("outbox")).unwrap());
    let (token, told) = (CancellationToken::new(), Arc::new(Mutex::new(0)));
    let running = {
        let (outbox, device, token, told) = (outbox.clone(), device.clone(), token.clone(), told.clone());
        tokio::spawn(async move { outbox.run(&device, token, |_, _| *told.lock() += 1).await })
    };
    for count in [3, 6] {
        for n in count - 3..count {
            outbox.enqueue(&device, PROJECT, "0.1", &format!("{n}")).unwrap();
        }
        tokio::time::timeout(Duration::from_secs(10), async {
            while *told.lock() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .unwrap();
    }
    token.cancel();
    running.await.unwrap().unwrap();
    assert_eq!((node.data().len(), outbox.waiting()), (6, 0));
}
