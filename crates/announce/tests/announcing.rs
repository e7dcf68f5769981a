//! Announcements to a peer that is set as those of W3bstream.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_announce::{Announcement, Announcer, CommittedTask, FeedError, Handle, Options, TaskFeed};
use lockstep_testkit::w3bstream_peer::Peer;
use lockstep_types::{ProjectId, SigningKey, TaskId, TaskNumber};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const CHAIN: u64 = 4_690;
const PROJECT: ProjectId = ProjectId(7);
const PAUSE: Duration = Duration::from_millis(100);
/// For anything that must happen.
const SOON: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

fn task_id(number: u64) -> TaskId {
    let mut id = [0xAB; 32];
    id[24..].copy_from_slice(&number.to_be_bytes());
    TaskId(id)
}

fn text(number: u64) -> String {
    format!(r#"{{"ProjectID":7,"TaskID":"0x{}{number:016x}"}}"#, "ab".repeat(24))
}

/// Every task there could be, and what became of them.
#[derive(Debug, Clone, Default)]
struct Feed {
    assigned: Arc<Mutex<BTreeSet<[u8; 32]>>>,
    remembered: Arc<Mutex<Option<TaskNumber>>>,
    broken: Arc<Mutex<bool>>,
}

impl Feed {
    fn assign(&self, number: u64) {
        self.assigned.lock().insert(task_id(number).0);
    }
}

impl TaskFeed for Feed {
    async fn tasks(&self, first: TaskNumber, last: TaskNumber, max: usize) -> Result<Vec<CommittedTask>, FeedError> {
        if *self.broken.lock() {
            return Err(FeedError("the test wants it so".into()));
        }
        let task = |number| {
            let announcement = Announcement { project: PROJECT, task: task_id(number) };
            CommittedTask { number: TaskNumber(number), announcement }
        };
        Ok((first.0..=last.0).take(max).map(task).collect())
    }

    fn is_assigned(&self, task: &Announcement) -> bool {
        self.assigned.lock().contains(&task.task.0)
    }

    fn remember(&self, next: TaskNumber) {
        *self.remembered.lock() = Some(next);
    }
}

/// An announcer that runs, and ends with this value.
struct Running {
    feed: Feed,
    handle: Handle,
    committed: watch::Sender<Option<TaskNumber>>,
    active: watch::Sender<bool>,
    stop: CancellationToken,
    ended: JoinHandle<()>,
    peer_id: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Running {
    async fn start(feed: Feed, key: u8, bootstrap: &[&str]) -> Self {
        Self::start_with(feed, key, bootstrap, |_| {}).await
    }

    async fn start_with(feed: Feed, key: u8, bootstrap: &[&str], change: impl FnOnce(&mut Options)) -> Self {
        let ((committed, committed_out), (active, active_out)) = (watch::channel(None), watch::channel(true));
        let key = SigningKey::from_bytes([key; 32]).unwrap();
        let mut options = Options::new(key, CHAIN, committed_out, active_out);
        options.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
        options.bootstrap = bootstrap.iter().map(ToString::to_string).collect();
        (options.pause_min, options.first_task) = (PAUSE, TaskNumber(1));
        options.remembered = *feed.remembered.lock();
        change(&mut options);
        let (announcer, handle) = Announcer::bind(options, feed.clone()).await.unwrap();
        let (stop, peer_id) = (CancellationToken::new(), announcer.peer_id());
        let ended = tokio::spawn(announcer.run(stop.clone()));
        Self { feed, handle, committed, active, stop, ended, peer_id }
    }

    fn commit(&self, number: u64) {
        self.committed.send_replace(Some(TaskNumber(number)));
    }

    async fn stop(mut self) -> Feed {
        self.stop.cancel();
        (&mut self.ended).await.unwrap();
        self.feed.clone()
    }
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = Instant::now() + SOON;
    while let Err(missing) = condition().await {
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}; {missing}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn heard(peer: &Peer, number: u64) -> usize {
    peer.messages().iter().filter(|message| message["data"] == text(number)).count()
}

async fn hears(peer: &Peer, number: u64, times: usize) {
    eventually(&format!("task {number} is heard {times} times"), async || {
        if heard(peer, number) >= times { Ok(()) } else { Err(format!("{:?}", peer.messages())) }
    })
    .await;
}

async fn listening_peer() -> Peer {
    let mut peer = Peer::start(CHAIN).await;
    peer.subscribe().await;
    peer
}

#[tokio::test]
async fn an_announcement_arrives_signed_in_exactly_the_form_of_the_reference() {
    let mut peer = listening_peer().await;
    let announcer = Running::start(Feed::default(), 1, &[peer.address()]).await;
    eventually("the peer listens", async || match announcer.handle.status().peers {
        1 => Ok(()),
        peers => Err(format!("{peers} peers")),
    })
    .await;
    announcer.commit(1);
    hears(&peer, 1, 2).await;
    let messages = peer.messages();
    for message in &messages {
        assert_eq!(message["topic"], "w3bstream-task");
        assert_eq!(message["signed"], true);
        assert_eq!(message["from"], announcer.peer_id.as_str());
        assert_eq!(message["data"], text(1));
    }
    let sequences: BTreeSet<String> = messages.iter().map(|message| message["sequence"].to_string()).collect();
    assert_eq!(sequences.len(), messages.len(), "a repetition is a message of its own");
    let connections = peer.connections().await;
    assert_eq!(connections.len(), 1, "{connections:?}");
    assert_eq!(
        (&connections[0]["multiplexer"], &connections[0]["encryption"]),
        (&"/yamux/2.0.0".into(), &"/noise".into())
    );
    let status = announcer.handle.status();
    assert_eq!((status.peers, status.announced, status.problem), (1, 1, None));
}

#[tokio::test]
async fn what_nobody_heard_is_announced_when_a_peer_comes() {
    let mut peer = Peer::start(CHAIN).await;
    let announcer = Running::start(Feed::default(), 2, &[peer.address()]).await;
    announcer.commit(3);
    eventually("the announcer says that nobody listens", async || {
        let status = announcer.handle.status();
        let told = status.problem.as_ref().is_some_and(|problem| problem.contains("nobody"));
        if told && status.waiting == 3 { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    assert_eq!(announcer.handle.status().announced, 0);
    peer.subscribe().await;
    for number in 1..=3 {
        hears(&peer, number, 1).await;
    }
    eventually("all is well", async || {
        let status = announcer.handle.status();
        if status.announced == 3 && status.problem.is_none() { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_comes_after_the_first_announcement_hears_a_later_one() {
    let first = listening_peer().await;
    let announcer = Running::start(Feed::default(), 3, &[first.address()]).await;
    announcer.commit(1);
    hears(&first, 1, 1).await;
    let own = format!("{}/p2p/{}", announcer.handle.listening()[0], announcer.peer_id);
    let mut late = Peer::start(CHAIN).await;
    late.dial(&own).await;
    late.subscribe().await;
    hears(&late, 1, 1).await;
}

#[tokio::test]
async fn announcing_stops_when_the_task_is_assigned_or_was_announced_often_enough() {
    let peer = listening_peer().await;
    let announcer =
        Running::start_with(Feed::default(), 4, &[peer.address()], |options| options.attempts_max = 3).await;
    announcer.feed.assign(1);
    announcer.commit(3);
    hears(&peer, 2, 1).await;
    announcer.feed.assign(2);
    hears(&peer, 3, 3).await;
    eventually("nothing waits", async || match announcer.handle.status().waiting {
        0 => Ok(()),
        waiting => Err(format!("{waiting} tasks")),
    })
    .await;
    // Once the next task was heard, what was sent before it has arrived too.
    let repeated = heard(&peer, 2);
    announcer.commit(4);
    hears(&peer, 4, 3).await;
    assert_eq!((heard(&peer, 1), heard(&peer, 2), heard(&peer, 3)), (0, repeated, 3));
    assert!(repeated <= 3);
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was_and_repeats_only_what_is_not_assigned() {
    let peer = listening_peer().await;
    let change = |options: &mut Options| options.attempts_max = 1;
    let announcer = Running::start_with(Feed::default(), 5, &[peer.address()], change).await;
    announcer.commit(1_000);
    hears(&peer, 1_000, 1).await;
    let feed = announcer.stop().await;
    assert_eq!(*feed.remembered.lock(), Some(TaskNumber(1_001)));
    assert_eq!((heard(&peer, 744), heard(&peer, 745)), (0, 1), "256 tasks before the newest");

    (1..=1_000).filter(|number| *number != 900).for_each(|number| feed.assign(number));
    let announcer = Running::start_with(feed, 5, &[peer.address()], change).await;
    announcer.commit(1_001);
    hears(&peer, 1_001, 1).await;
    assert_eq!((heard(&peer, 899), heard(&peer, 900), heard(&peer, 1_000)), (1, 2, 1));
}

#[tokio::test]
async fn only_the_one_who_is_to_announce_does_and_a_feed_that_fails_is_asked_again() {
    let peer = listening_peer().await;
    let announcer = Running::start(Feed::default(), 6, &[peer.address()]).await;
    announcer.active.send_replace(false);
    announcer.commit(1);
    eventually("the peer listens", async || match announcer.handle.status().peers {
        1 => Ok(()),
        peers => Err(format!("{peers} peers")),
    })
    .await;
    assert_eq!(announcer.handle.status().announced, 0);
    *announcer.feed.broken.lock() = true;
    announcer.active.send_replace(true);
    eventually("the problem is told", async || match announcer.handle.status().problem {
        Some(problem) if problem.contains("the test wants it so") => Ok(()),
        problem => Err(format!("{problem:?}")),
    })
    .await;
    *announcer.feed.broken.lock() = false;
    hears(&peer, 1, 1).await;
}

#[tokio::test]
async fn two_announcers_find_each_other_by_the_rendezvous_of_a_peer() {
    let mut peer = Peer::start(CHAIN).await;
    let first = Running::start(Feed::default(), 7, &[peer.address()]).await;
    let second = Running::start(Feed::default(), 8, &[peer.address()]).await;
    eventually("the peer knows both at the rendezvous", async || {
        let found = peer.providers().await;
        let has = |running: &Running| found[&running.peer_id].as_array().is_some_and(|list| !list.is_empty());
        if has(&first) && has(&second) { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    // The peer does not listen to announcements, so whoever does is the other announcer.
    for running in [&first, &second] {
        eventually("they listen to each other", async || match running.handle.status().peers {
            1 => Ok(()),
            peers => Err(format!("{peers} peers")),
        })
        .await;
    }
}

#[tokio::test]
async fn what_others_announce_is_passed_on_and_nothing_else_is() {
    let mut origin = listening_peer().await;
    let announcer = Running::start(Feed::default(), 9, &[origin.address()]).await;
    let own = format!("{}/p2p/{}", announcer.handle.listening()[0], announcer.peer_id);
    let mut other = Peer::start(CHAIN).await;
    other.dial(&own).await;
    other.subscribe().await;
    eventually("both listen", async || match announcer.handle.status().peers {
        2 => Ok(()),
        peers => Err(format!("{peers} peers")),
    })
    .await;
    origin.publish("no announcement").await;
    // Until the mesh has formed some are lost.
    eventually("an announcement is passed on", async || {
        origin.publish(&text(77)).await;
        if heard(&other, 77) > 0 { Ok(()) } else { Err("nothing heard".into()) }
    })
    .await;
    let from: Vec<Value> = other.messages().iter().map(|message| message["from"].clone()).collect();
    assert!(from.iter().all(|from| from == origin.id()), "{from:?}");
    assert!(other.messages().iter().all(|message| message["data"] == text(77)));
}

#[tokio::test]
async fn a_used_port_and_a_bootstrap_address_without_a_peer_are_told_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let bind = async |listen: String, bootstrap: Vec<String>| {
        let key = SigningKey::from_bytes([10; 32]).unwrap();
        let mut options = Options::new(key, CHAIN, watch::channel(None).1, watch::channel(true).1);
        (options.listen, options.bootstrap) = (vec![listen], bootstrap);
        Announcer::bind(options, Feed::default()).await.map(drop).unwrap_err().to_string()
    };
    assert!(bind(format!("/ip4/127.0.0.1/tcp/{port}"), Vec::new()).await.contains("in use"));
    let free = "/ip4/127.0.0.1/tcp/0".to_owned();
    assert!(bind(free.clone(), vec!["/ip4/10.0.0.1/tcp/9000".into()]).await.contains("/p2p/"));
    assert!(bind("somewhere".into(), Vec::new()).await.contains("not a multiaddress"));
}
