//! Servers that die, and nodes that publish at the same time. Each test has a cluster of its own.

use std::sync::Arc;
use std::time::Duration;

use lockstep_outputs::publisher::State;
use lockstep_outputs::{NatsOutput, Output as _, OutputError};
use lockstep_testkit::nats::Nats;
use lockstep_types::TaskNumber;

use super::Stream;
use crate::blobs::{blob_tasks, publisher};
use crate::support::{FIRST, Feed, eventually, number, outage, owner};

/// Which server leads the stream.
async fn leader(nats: &Nats, store: &Stream) -> usize {
    let context = store.context().await;
    eventually("the stream has a leader", || async {
        let stream = context.get_stream(&store.options.stream).await.ok()?;
        let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
        nats.index_of(&leader)
    })
    .await
}

/// Publishes up to a task, whatever happens meanwhile.
async fn publish_until(output: &NatsOutput, end: u64, step: u64) {
    eventually("all is published", || async {
        let last = output.last().await.ok()?;
        let next = owner().next(last).0;
        if next > end {
            return Some(());
        }
        match output.publish(&blob_tasks(next..=end.min(next + step - 1)), last).await {
            Ok(_) => None,
            Err(error @ (OutputError::Moved { .. } | OutputError::Retryable(_))) => {
                println!("behind {last:?}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_leader_dies_in_the_middle_of_a_call_and_each_task_is_there_once_in_order() {
    let mut nats = Nats::start();
    let store = Stream::of(&nats).await;
    let output = store.open_direct();
    output.publish(&blob_tasks(FIRST..=9), None).await.unwrap();
    let mut next = 10;
    for _ in 0..3 {
        let dies = leader(&nats, &store).await;
        let (writer, last) = (Arc::clone(&output), next + 2_000);
        let writing =
            tokio::spawn(async move { writer.publish(&blob_tasks(next..=last), number(next - 1)).await.map(drop) });
        let watcher = store.open_direct();
        eventually("it is in the middle", || async {
            let seen = watcher.last().await.ok().flatten()?;
            (seen.0 > next + 50 || writing.is_finished()).then_some(())
        })
        .await;
        nats.kill(dies);
        let outcome = writing.await.unwrap();
        println!("killed server {dies}: {outcome:?}");
        publish_until(&output, last, 500).await;
        nats.start_again(dies);
        // With two of three away nobody leads the stream.
        tokio::task::block_in_place(|| nats.wait_until_whole());
        next = last + 1;
    }
    assert_eq!(store.numbers().await, (FIRST..next).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_down_gets_everything_once_when_it_is_back() {
    let mut nats = Nats::start();
    let store = Stream::of(&nats).await;
    let feed = Feed::new();
    feed.finalize(FIRST + 40);
    let node = publisher(&feed, store.open_direct());
    node.wait_for("the first tasks", |s| s.last_published == number(FIRST + 40)).await;
    for index in 0..3 {
        nats.kill(index);
    }
    feed.finalize(FIRST + 700);
    let status = node.wait_for("the failure is visible", |s| s.last_error.is_some()).await;
    assert_eq!((status.state, status.last_published), (State::Retrying, number(FIRST + 40)));
    outage().await;
    for index in 0..3 {
        nats.start_again(index);
    }
    node.wait_for("all tasks", |s| s.last_published == number(FIRST + 700) && s.last_error.is_none()).await;
    node.stop().await;
    assert_eq!(store.numbers().await, (FIRST..=FIRST + 700).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_at_the_same_time_write_each_task_once_while_servers_die() {
    let mut nats = Nats::start();
    let store = Stream::of(&nats).await;
    let end = FIRST + 3_000;
    // One that was deposed and does not know it, and one that has taken over; and one that fills nothing twice.
    let writers: Vec<_> = [37, 101, 256]
        .into_iter()
        .map(|step| {
            let output = store.open_direct();
            tokio::spawn(async move { publish_until(&output, end, step).await })
        })
        .collect();
    for index in 0..2 {
        let watcher = store.open_direct();
        let far = FIRST + 300 + 1_000 * index as u64;
        let reach = async |far: u64| {
            eventually("they get on", || async { (watcher.last().await.ok()? > number(far)).then_some(()) }).await;
        };
        reach(far).await;
        nats.kill(index);
        reach(far + 300).await;
        nats.start_again(index);
        tokio::task::block_in_place(|| nats.wait_until_whole());
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.numbers().await, (FIRST..=end).collect::<Vec<_>>());
    let output = store.open_direct();
    assert_eq!(output.stored(TaskNumber(end - 9), 100, &[]).await.unwrap().tasks, blob_tasks(end - 9..=end));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leaders_late_call_changes_nothing_within_the_servers_window_too() {
    let nats = Nats::start();
    let mut store = Stream::of(&nats).await;
    store.options.duplicate_window = Duration::from_secs(120);
    let (old, new) = (store.open_direct(), store.open_direct());
    old.publish(&blob_tasks(FIRST..=9), None).await.unwrap();
    new.publish(&blob_tasks(10..=12), number(9)).await.unwrap();
    // The server knows the ids of 10 to 12 and would let 13 in behind them.
    let moved = OutputError::Moved { actual_last: number(12) };
    assert_eq!(old.publish(&blob_tasks(10..=14), number(9)).await, Err(moved));
    assert_eq!(store.numbers().await, (FIRST..=12).collect::<Vec<_>>());
}
