//! Copies of the state between members, and logs that are purged: nodes in one process, on real files.
// Clippy's leave for tests does not reach the functions that they share.

mod network;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lockstep_consensus::{ConsensusError, TransportError};
use lockstep_types::proto;
use network::{MESSAGE_BYTES, Network, bytes_in, eventually, small_logs};
use parking_lot::Mutex;
use prost::Message as _;

fn incoming(network: &Network, node: u64) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(network.path(node).join("snapshots")) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("incoming-")).collect()
}

fn broken() -> Result<Bytes, TransportError> {
    Err(TransportError::Broken("the connection was cut".into()))
}

/// Nodes 1 and 2 have gone on without node 3 until none of them has the entries that it needs.
async fn one_is_left_behind() -> Network {
    let mut network = Network::start(3, small_logs()).await;
    network.propose(3).await;
    network.wait_equal().await;
    network.wires.set_down(3, true);
    network.propose(250).await;
    for node in [1, 2] {
        network.wait_purged(node, 200).await;
    }
    network
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_missed_everything_gets_the_state_although_it_is_cut_off_and_killed_on_the_way() {
    let mut network = one_is_left_behind().await;
    // Every fifth piece is lost, with its connection.
    let calls = AtomicU64::new(0);
    network.wires.tamper(Some(Box::new(move |_, answer| {
        if calls.fetch_add(1, Ordering::Relaxed) % 5 == 4 { broken() } else { answer }
    })));
    network.wires.piece_ms.store(200, Ordering::Relaxed);
    network.wires.set_down(3, false);
    for share in [4, 2] {
        let total = eventually("a part is there", || {
            let progress = network.node(3).snapshot_progress().borrow().clone();
            match progress {
                Some(p) if p.bytes_total > 0 && p.bytes_done >= p.bytes_total / share => Ok(p.bytes_total),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(!network.node(3).is_caught_up(), "who fetches the state is not ready");
        network.wires.set_down(3, true);
        if share == 4 {
            let left = network.crash(3).await;
            network.start_node(3, left).await.unwrap();
            assert_eq!(incoming(&network, 3).len(), 1, "what was fetched is still there");
        }
        network.wires.set_down(3, false);
        assert!(total > 200 * MESSAGE_BYTES as u64, "{total} is less than what was proposed");
    }
    network.propose(10).await;
    let head = network.wait_equal().await;
    assert_eq!(head.next_sequence.0, 264);
    let (fetched, state) = (network.wires.bulk_bytes.load(Ordering::Relaxed), bytes_in(&network.path(1).join("state")));
    println!("{fetched} bytes were fetched of a state of {state} bytes");
    assert!(fetched < state * 3 / 2, "{fetched} bytes were fetched for a state of {state}");
    eventually("nothing is left of the transfer", || match incoming(&network, 3) {
        left if left.is_empty() && network.node(3).snapshot_progress().borrow().is_none() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
    assert!(network.node(3).log_figures().purged > 200);
    // It is a member as before: with one of the others gone, the two of them go on, after a crash of both too.
    network.stop(1).await;
    network.propose(5).await;
    for node in [2, 3] {
        let left = network.crash(node).await;
        network.start_node(node, left).await.unwrap();
    }
    network.propose(5).await;
    assert_eq!(network.wait_equal().await.next_sequence.0, 274);
    network.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_that_are_not_what_was_offered_never_become_state() {
    let mut network = one_is_left_behind().await;
    let before = network.head(3);
    type Lie = fn(proto::PieceRequest, Vec<u8>) -> proto::bulk_response::Kind;
    use proto::bulk_response::Kind;
    let lies: [Lie; 4] = [
        |_, mut piece| {
            let middle = piece.len() / 2;
            piece[middle] ^= 1;
            Kind::Piece(piece.into())
        },
        |_, piece| Kind::Piece(piece[..piece.len() / 2].to_vec().into()),
        |_, mut piece| {
            piece.extend_from_slice(&[0; 1 << 20]);
            Kind::Piece(piece.into())
        },
        |_, _| Kind::Failed("no".into()),
    ];
    let told = Arc::new(Mutex::new(HashMap::<usize, u64>::new()));
    for (number, lie) in lies.into_iter().enumerate() {
        let seen = told.clone();
        network.wires.tamper(Some(Box::new(move |request, answer| {
            *seen.lock().entry(number).or_default() += 1;
            let Ok(proto::BulkResponse { kind: Some(Kind::Piece(piece)) }) = proto::BulkResponse::decode(answer?)
            else {
                return broken();
            };
            Ok(proto::BulkResponse { kind: Some(lie(request, piece.to_vec())) }.encode_to_vec().into())
        })));
        network.wires.set_down(3, false);
        let problem = eventually("it is noticed", || {
            let progress = network.node(3).snapshot_progress().borrow().clone();
            let told = told.lock().get(&number).copied().unwrap_or_default();
            let problem = progress.and_then(|progress| progress.problem);
            problem.filter(|_| told > 4).ok_or_else(|| format!("{told} lies told"))
        })
        .await;
        println!("{number}: {problem}");
        assert_eq!(network.head(3), before, "nothing was installed");
    }
    network.wires.tamper(None);
    network.propose(1).await;
    assert_eq!(network.wait_equal().await.next_sequence.0, 255);
    network.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_takes_entries_too_slowly_does_not_let_the_log_grow_for_ever() {
    let mut network = Network::start(3, small_logs()).await;
    network.propose(3).await;
    network.wait_equal().await;
    let leader = network.leader().await;
    let slow = leader % 3 + 1;
    // A few entries in ten seconds: openraft would never purge what it is still sending.
    *network.wires.slow.lock() = Some((slow, Duration::from_secs(10)));
    network.propose(200).await;
    network.wait_purged(leader, 150).await;
    assert!(network.head(slow).unwrap().next_sequence.0 < 100);
    *network.wires.slow.lock() = None;
    assert_eq!(network.wait_equal().await.next_sequence.0, 204);
    network.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_log_stays_short_and_its_node_starts_after_a_crash_at_any_time() {
    let mut network = Network::start(1, small_logs()).await;
    let (mut purged, mut largest) = (0, 0);
    for round in 0..8 {
        network.propose(60).await;
        network.wait_purged(1, purged + 30).await;
        purged = network.node(1).log_figures().purged;
        let head = network.head(1);
        let left = network.crash(1).await;
        // What is purged is in the state on disk; the rest is applied again from the log.
        network.start_node(1, left).await.unwrap();
        network.leader().await;
        eventually("the state is as before", || if network.head(1) == head { Ok(()) } else { Err("not yet".into()) })
            .await;
        let figures = network.node(1).log_figures();
        assert!(figures.purged >= purged, "{figures:?} after {purged}");
        largest = largest.max(bytes_in(&network.path(1).join("log")));
        println!("round {round}: {figures:?}, {} bytes of log on disk", bytes_in(&network.path(1).join("log")));
    }
    // 28 MB went through the log.
    assert!(largest < 12 << 20, "{largest} bytes");
    assert_eq!(network.head(1).unwrap().next_sequence.0, 481);
    assert!(bytes_in(&network.path(1).join("snapshots")) < 2 * bytes_in(network.path(1)), "copies do not pile up");
    let copies = std::fs::read_dir(network.path(1).join("snapshots")).unwrap().count();
    assert!(copies <= 2, "{copies} copies");
    network.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_was_taken_away_behind_a_purged_log_is_told_and_not_made_up() {
    let mut network = Network::start(1, small_logs()).await;
    network.propose(40).await;
    network.wait_purged(1, 10).await;
    let left = network.crash(1).await;
    std::fs::remove_dir_all(left.join("state")).unwrap();
    let error = network.start_node(1, left).await.unwrap_err();
    assert!(matches!(error, ConsensusError::StateBehindLog { applied: 0, purged: 10.. }), "{error}");
}
