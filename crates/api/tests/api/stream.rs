//! gRPC streams of messages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::*;
use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use lockstep_api::Options;
use lockstep_api::rate::Rate;
use lockstep_identity::apinode;
use lockstep_types::proto::sequencer_client::SequencerClient;
use lockstep_types::proto::submit_result::Result as Outcome;
use lockstep_types::proto::{SubmitRefusal, SubmitRequest, SubmitResult};
use tonic::{Code, Status, Streaming};

const SOON: Duration = Duration::from_secs(5);

fn request(client_ref: u64, data: &str) -> SubmitRequest {
    let signed = apinode::parse(signed(data).as_bytes()).unwrap();
    SubmitRequest {
        project_id: signed.project_id.0,
        project_version: signed.project_version,
        data: signed.data,
        signature: signed.signature.unwrap().0.to_vec().into(),
        client_ref,
        ..SubmitRequest::default()
    }
}

async fn open(server: &Running) -> (UnboundedSender<SubmitRequest>, Streaming<SubmitResult>) {
    let mut client = SequencerClient::connect(format!("http://{}", server.addr)).await.unwrap();
    let (requests, receiver) = unbounded();
    (requests, client.submit_stream(receiver).await.unwrap().into_inner())
}

async fn next(results: &mut Streaming<SubmitResult>) -> Result<Option<SubmitResult>, Status> {
    tokio::time::timeout(SOON, results.message()).await.expect("nothing came in time")
}

fn refused(result: SubmitResult) -> SubmitRefusal {
    let Some(Outcome::Refused(refusal)) = result.result else { panic!("accepted: {result:?}") };
    refusal
}

#[tokio::test]
async fn every_message_of_a_stream_is_answered_once_by_its_reference() {
    let server = start(Options { stream_in_flight_max: 8, ..Options::default() });
    let (requests, results) = open(&server).await;
    for n in 0..300 {
        requests.unbounded_send(request(n, &format!("n{n}"))).unwrap();
    }
    drop(requests);
    let results: Vec<_> = tokio::time::timeout(SOON, results.collect()).await.unwrap();
    let mut sequences = BTreeMap::new();
    for result in results {
        let SubmitResult { client_ref, result: Some(Outcome::Accepted(accepted)) } = result.unwrap() else {
            panic!("refused")
        };
        assert_eq!(sequences.insert(client_ref, accepted.sequence), None);
    }
    assert_eq!(sequences.keys().copied().collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
    let mut taken: Vec<_> = sequences.into_values().collect();
    taken.sort_unstable();
    assert_eq!(taken, (1..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_refusal_says_why_and_does_not_end_the_stream() {
    let server = start(Options::default());
    let (requests, mut results) = open(&server).await;
    let mut answer = async |request: SubmitRequest| {
        requests.unbounded_send(request).unwrap();
        next(&mut results).await.unwrap().unwrap()
    };
    for (data, code, retry_after_ms, has_id) in [
        ("busy", Code::ResourceExhausted, 1500, false),
        ("fast", Code::ResourceExhausted, 250, false),
        ("unavailable", Code::Unavailable, 10, true),
        ("forbidden", Code::PermissionDenied, 0, false),
        ("large", Code::InvalidArgument, 0, false),
    ] {
        let refusal = refused(answer(request(9, data)).await);
        assert_eq!((refusal.code, refusal.retry_after_ms), (code as u32, retry_after_ms), "{data}");
        assert_eq!((refusal.content_id.len() == 32, refusal.message.is_empty()), (has_id, false), "{data}");
    }
    let missing = SubmitRequest { data: String::new(), ..request(5, "a") };
    assert_eq!(refused(answer(missing).await).code, Code::InvalidArgument as u32);
    assert!(matches!(answer(request(7, "a")).await.result, Some(Outcome::Accepted(_))));
}

#[tokio::test]
async fn a_quick_message_does_not_wait_for_a_slow_one_unless_the_stream_is_full() {
    let server = start(Options { stream_in_flight_max: 2, ..Options::default() });
    let (requests, mut results) = open(&server).await;
    for (client_ref, data) in [(1, "slow"), (2, "quick")] {
        requests.unbounded_send(request(client_ref, data)).unwrap();
    }
    let first = next(&mut results).await.unwrap().unwrap().client_ref;
    assert_eq!((first, next(&mut results).await.unwrap().unwrap().client_ref), (2, 1));

    // Two that are never answered fill the stream; a third one is not even read.
    for (client_ref, data) in [(3, "never"), (4, "never"), (5, "quick")] {
        requests.unbounded_send(request(client_ref, data)).unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_millis(300), results.message()).await.is_err());
    let (_others, mut others_results) = {
        let (requests, results) = open(&server).await;
        requests.unbounded_send(request(6, "quick")).unwrap();
        (requests, results)
    };
    assert_eq!(next(&mut others_results).await.unwrap().unwrap().client_ref, 6);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_a_closed_one_makes_room() {
    let server = start(Options { submit_streams_max: 1, ..Options::default() });
    let mut client = SequencerClient::connect(format!("http://{}", server.addr)).await.unwrap();
    let (requests, results) = open(&server).await;
    let refused = client.submit_stream(futures::stream::pending()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    drop((requests, results));
    let deadline = Instant::now() + SOON;
    while client.submit_stream(futures::stream::pending()).await.is_err() {
        assert!(Instant::now() < deadline, "no room was made");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_idle_stream_ends_and_a_busy_one_outlives_the_time_of_an_idle_connection() {
    let idle_timeout_ms = 400;
    let server = start(Options { idle_timeout_ms, header_read_timeout_ms: 400, ..Options::default() });
    let (requests, mut results) = open(&server).await;
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < Duration::from_millis(3 * idle_timeout_ms) {
        n += 1;
        requests.unbounded_send(request(n, "a")).unwrap();
        assert_eq!(next(&mut results).await.unwrap().unwrap().client_ref, n);
        tokio::time::sleep(Duration::from_millis(idle_timeout_ms / 4)).await;
    }
    assert_eq!(next(&mut results).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn shutdown_answers_what_is_under_way_and_ends_the_stream() {
    let server = start(Options::default());
    let (requests, mut results) = open(&server).await;
    requests.unbounded_send(request(1, "slow")).unwrap();
    requests.unbounded_send(request(2, "quick")).unwrap();
    assert_eq!(next(&mut results).await.unwrap().unwrap().client_ref, 2);
    server.stop.cancel();
    assert_eq!(next(&mut results).await.unwrap().unwrap().client_ref, 1);
    assert_eq!(next(&mut results).await.unwrap_err().code(), Code::Unavailable);
    tokio::time::timeout(SOON, server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn each_message_of_a_stream_counts_for_its_address() {
    let server = start(Options { address_rate: Rate { per_second: 1, burst: 3 }, ..Options::default() });
    let (requests, mut results) = open(&server).await;
    let mut outcomes = Vec::new();
    for n in 0..3 {
        requests.unbounded_send(request(n, "a")).unwrap();
        outcomes.push(next(&mut results).await.unwrap().unwrap());
    }
    let last = refused(outcomes.pop().unwrap());
    assert_eq!((last.code, last.retry_after_ms > 500), (Code::ResourceExhausted as u32, true));
    assert!(outcomes.iter().all(|o| matches!(o.result, Some(Outcome::Accepted(_)))));
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_the_stream() {
    let server = start(Options::default());
    let (requests, mut results) = open(&server).await;
    requests.unbounded_send(SubmitRequest { data: "x".repeat(1 << 20), ..request(1, "a") }).unwrap();
    assert_eq!(next(&mut results).await.unwrap_err().code(), Code::OutOfRange);
}
