//! The gRPC door, on the same port.

use crate::common::*;
use lockstep_api::Options;
use lockstep_identity::apinode;
use lockstep_types::proto::SubmitRequest;
use lockstep_types::proto::sequencer_client::SequencerClient;
use tonic::Code;

fn request(data: &str) -> SubmitRequest {
    let signed = apinode::parse(signed(data).as_bytes()).unwrap();
    SubmitRequest {
        project_id: signed.project_id.0,
        project_version: signed.project_version,
        data: signed.data,
        signature: signed.signature.unwrap().0.to_vec().into(),
        ..SubmitRequest::default()
    }
}

#[tokio::test]
async fn a_message_is_submitted_by_grpc_on_the_same_port() {
    let server = start(Options::default());
    let mut client = SequencerClient::connect(format!("http://{}", server.addr)).await.unwrap();
    let answer = client.submit(request("a")).await.unwrap().into_inner();
    assert_eq!((answer.message_id.len(), answer.task_id.len(), answer.sequence, answer.height), (32, 0, 1, 1));
    assert_eq!(exchange(server.addr, &post(signed("b").as_bytes(), "")).await.json()["sequence"], 2);
    server.stop.cancel();
    server.served.await.unwrap();
}

#[tokio::test]
async fn refusals_have_the_words_of_grpc() {
    let server = start(Options::default());
    let mut client = SequencerClient::connect(format!("http://{}", server.addr)).await.unwrap();
    let mut short = request("a");
    short.signature = vec![1; 64].into();
    let mut unrecoverable = request("a");
    unrecoverable.signature = vec![0; 65].into();
    let mut unsigned = request("a");
    unsigned.signature = Default::default();
    let empty = SubmitRequest { data: String::new(), ..request("a") };
    let long = SubmitRequest { data: "x".repeat((64 << 10) + 1), ..request("a") };
    let huge = SubmitRequest { data: "x".repeat(1 << 20), ..request("a") };
    for (request, code) in [
        (short, Code::InvalidArgument),
        (empty, Code::InvalidArgument),
        (long, Code::InvalidArgument),
        (huge, Code::InvalidArgument),
        (unrecoverable, Code::Unauthenticated),
        (unsigned, Code::PermissionDenied),
        (request("busy"), Code::ResourceExhausted),
        (request("unavailable"), Code::Unavailable),
        (request("stopping"), Code::Unavailable),
    ] {
        let status = client.submit(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().is_empty());
    }
    let status = client.submit(request("unavailable")).await.unwrap_err();
    assert!(status.metadata().get("content-id").is_some() && status.metadata().get("retry-after").is_some());
}
