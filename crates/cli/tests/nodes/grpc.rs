//! The gRPC door of a real node.

use lockstep_identity::apinode;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::http::{get, post_message};
use lockstep_testkit::load::device_key;
use lockstep_types::ProjectId;
use lockstep_types::proto::SubmitRequest;
use lockstep_types::proto::sequencer_client::SequencerClient;
use tonic::Code;

use crate::binary;

#[tokio::test]
async fn a_message_by_grpc_and_the_same_by_http_have_one_position() {
    let cluster = Cluster::start(binary(), ClusterOptions::of(1)).await;
    let node = cluster.node(0);
    let mut client = SequencerClient::connect(node.url()).await.unwrap();
    let key = device_key(1, 0);
    let body = lockstep_identity::sign_body(&key, ProjectId(7), "0.1", "by gRPC");
    let signed = apinode::parse(body.as_bytes()).unwrap();
    let request = SubmitRequest {
        project_id: 7,
        project_version: signed.project_version,
        data: signed.data,
        signature: signed.signature.unwrap().0.to_vec().into(),
        ..SubmitRequest::default()
    };
    let answer = client.submit(request.clone()).await.unwrap().into_inner();
    assert!(!answer.duplicate);
    assert_eq!((answer.sequence, answer.height, answer.message_id.len(), answer.task_id.len()), (1, 1, 32, 32));
    let id = format!("0x{}", hex::encode(&answer.message_id));
    let message = get(node.address(), &format!("/api/messages/{id}")).await.json();
    assert_eq!(message["device"], key.address().to_string());

    let by_http = post_message(node.address(), body.as_bytes()).await.json();
    assert_eq!((&by_http["messageID"], &by_http["duplicate"]), (&id.into(), &true.into()));
    assert!(client.submit(request.clone()).await.unwrap().into_inner().duplicate);

    let refused = SubmitRequest { project_version: "a\0b".into(), ..request };
    assert_eq!(client.submit(refused).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(cluster.status(0).await.unwrap().head.sequence.0, 1);
}
