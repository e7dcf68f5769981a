//! NATS JetStream: clusters of real servers.

use lockstep_outputs::{NatsOptions, NatsOutput, Output as _};
use lockstep_testkit::nats::Nats;

use crate::blobs::blob_tasks;
use crate::support::{FIRST, number, owner};

#[tokio::test(flavor = "multi_thread")]
async fn one_server_works() {
    let began = std::time::Instant::now();
    let nats = Nats::start_with(1, "");
    println!("started {:?}", began.elapsed());
    let options = NatsOptions { replicas: 1, ..NatsOptions::new(nats.urls()) };
    let output = NatsOutput::new(&options, owner()).unwrap();
    assert_eq!(output.last().await, Ok(None));
    let tasks = blob_tasks(FIRST..=20);
    let receipt = output.publish(&tasks, None).await.unwrap();
    println!("{receipt:?}");
    assert_eq!(output.last().await, Ok(number(20)));
    assert_eq!(output.publish(&tasks, None).await.unwrap(), receipt);
    assert_eq!(output.read(&tasks[3].id).await.unwrap().as_ref(), Some(&tasks[3]));
    assert_eq!(output.stored(tasks[2].number, 5, &[]).await.unwrap(), tasks[2..7]);
}
