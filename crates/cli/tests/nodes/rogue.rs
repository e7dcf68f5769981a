//! A member that has gone bad: its process is stopped, and somebody speaks with its key. Three honest voters of four go
//! on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_network::{CallError, Channel, Handle, LogView, Network, Options, Peer, Service};
use lockstep_node::RULES_NEWEST;
use lockstep_node::config::REHEARSED_RULES;
use lockstep_testkit::audit::audit;
use lockstep_testkit::cluster::{Cluster, ClusterOptions, open_params};
use lockstep_testkit::history::Content;
use lockstep_testkit::random::Random;
use lockstep_testkit::wait::eventually;
use lockstep_types::certificate::sign_batch;
use lockstep_types::conflict::Conflict;
use lockstep_types::{
    Api, BatchHeader, Epoch, Evidence, Height, Message, NetworkId, NetworkParams, NodeId, ProjectId, ProjectSettings,
    Signature, SigningKey, TimeMs, proto,
};
use prost::Message as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::hostile::Device;
use crate::steps::{agree_to_rules, rules_hold};
use crate::{SOON, binary};

/// The member that goes bad.
const ROGUE: usize = 3;
/// What an attack may cost above what a node holds before it.
const MEMORY_GROWTH_MAX: u64 = 512 << 20;
/// Messages of the device before and during the attack.
const MESSAGES: usize = 150;
/// The device may become slower by this factor at most. Loose: the attacker has this machine's cores, too.
const SLOWER_MAX: u32 = 20;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A log as long as its owner likes.
struct Claim(u64);

impl LogView for Claim {
    fn last_index(&self) -> u64 {
        self.0
    }

    fn acknowledged(&self, _node: NodeId) -> u64 {
        0
    }
}

/// Answers what an honest member asks with lies: it has everything, won every election, and signs what it is asked for
/// with a signature that is none.
struct Liar(Channel);

impl Service for Liar {
    async fn handle(&self, _from: NodeId, request: Bytes) -> Bytes {
        let raft = |kind| proto::RaftResponse { kind: Some(kind) }.encode_to_vec().into();
        let far = |term| proto::LogId { term, leader: 0, index: u64::MAX };
        let vote = proto::Vote { term: u64::MAX, leader: 1, committed: true };
        match self.0 {
            Channel::Raft => match proto::RaftRequest::decode(request).ok().and_then(|request| request.kind) {
                Some(proto::raft_request::Kind::Append(append)) if append.entries.is_empty() => {
                    let answer = proto::AppendResponse { result: 3, matched: None, vote: Some(vote) };
                    raft(proto::raft_response::Kind::Append(answer))
                }
                Some(proto::raft_request::Kind::Append(_)) => {
                    // Smaller than all that was sent, by its term, and farther than all.
                    let answer = proto::AppendResponse { result: 1, matched: Some(far(0)), vote: None };
                    raft(proto::raft_response::Kind::Append(answer))
                }
                _ => raft(proto::raft_response::Kind::Vote(proto::VoteResponse {
                    vote: Some(vote),
                    granted: true,
                    last: Some(far(1)),
                })),
            },
            Channel::Control => match proto::ControlRequest::decode(request).ok().and_then(|request| request.kind) {
                Some(proto::control_request::Kind::Certify(wanted)) => {
                    let signature = Bytes::from_static(&[27; 65]);
                    let answer = proto::CertifyResponse { hash: wanted.hash, signature, header: None };
                    let kind = proto::control_response::Kind::Certify(answer);
                    proto::ControlResponse { kind: Some(kind) }.encode_to_vec().into()
                }
                _ => Bytes::from_static(&[0xff; 64]),
            },
            Channel::Bundle | Channel::Snapshot => Bytes::from_static(&[0xff; 64]),
        }
    }
}

fn key_in(home: &Path) -> SigningKey {
    SigningKey::from_hex(fs::read_to_string(home.join("node.key")).unwrap().trim()).unwrap()
}

/// Somebody with the key of a member of the cluster.
struct Rogue {
    handle: Handle,
    key: SigningKey,
    node: NodeId,
    targets: Vec<NodeId>,
    stop: CancellationToken,
}

impl Rogue {
    async fn start(cluster: &Cluster, network: NetworkId, log_length: u64) -> Self {
        let genesis = cluster.genesis();
        let key = key_in(cluster.node(ROGUE).process.home());
        let (node, own) = genesis.member_of(&key.public()).map(|(node, own)| (node, own.clone())).unwrap();
        let mut options = Options::new(key.clone(), network, Epoch(0), node, own.incarnation);
        // It dials the others. Larger frames than they take.
        options.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
        (options.raft_bytes_max, options.bundle_bytes_max) = (256 << 20, 256 << 20);
        let (network, handle, inbox) = Network::bind(options).await.unwrap();
        for channel in [Channel::Raft, Channel::Bundle, Channel::Control, Channel::Snapshot] {
            handle.serve(channel, Liar(channel)).unwrap();
        }
        handle.set_log_view(std::sync::Arc::new(Claim(log_length)));
        let stop = CancellationToken::new();
        tokio::spawn(network.run(stop.clone()));
        // It hears gossip and says nothing about it.
        tokio::spawn(async move {
            let mut inbox = inbox;
            while inbox.next().await.is_some() {}
        });
        let mut targets = Vec::new();
        for (other, member) in genesis.nodes().filter(|(other, _)| *other != node) {
            let (name, address) = (member.name.clone(), Some(member.p2p.clone()));
            let (key, incarnation) = (member.key().unwrap(), member.incarnation);
            handle.set_member(Peer { node: other, name, key, address, incarnation }).await.unwrap();
            targets.push(other);
        }
        Self { handle, key, node, targets, stop }
    }

    async fn call(&self, target: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, CallError> {
        self.handle.client(target, channel).call(&[request], CALL_TIMEOUT).await
    }

    /// Asks until it is connected, and returns what comes then.
    async fn connected(&self, channel: Channel, request: Bytes) -> Result<Bytes, CallError> {
        let until = Instant::now() + SOON;
        loop {
            match self.call(self.targets[0], channel, request.clone()).await {
                Err(CallError::Unreachable(_)) if Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }

    /// Says why raft refuses a request.
    async fn raft_refusal(&self, kind: proto::raft_request::Kind) -> String {
        let request = proto::RaftRequest { kind: Some(kind) }.encode_to_vec();
        let answer = self.connected(Channel::Raft, request.into()).await.unwrap();
        match proto::RaftResponse::decode(answer).unwrap().kind {
            Some(proto::raft_response::Kind::Failed(reason)) => reason,
            other => panic!("raft took it: {other:?}"),
        }
    }

    async fn control(&self, kind: proto::control_request::Kind) -> Option<proto::control_response::Kind> {
        let request = proto::ControlRequest { kind: Some(kind) }.encode_to_vec();
        let answer = self.connected(Channel::Control, request.into()).await.unwrap();
        proto::ControlResponse::decode(answer).unwrap().kind
    }
}

fn vote(term: u64, rogue: NodeId, committed: bool) -> Option<proto::Vote> {
    Some(proto::Vote { term, leader: rogue.0, committed })
}

/// Raft's messages that no honest member sends.
async fn lies_in_raft(rogue: &Rogue, term: u64, length: u64) {
    use proto::raft_request::Kind;
    let id = |index| Some(proto::LogId { term, leader: 0, index });
    let entry = |index| proto::Entry { id: id(index), payload: None };
    let append = |vote, entries| {
        Kind::Append(proto::AppendRequest { vote, previous: id(length), entries, committed: id(u64::MAX - 1) })
    };
    let won = vote(term, rogue.node, true);
    let gap = rogue.raft_refusal(append(won, vec![entry(length + 2)])).await;
    assert!(gap.contains("do not follow"), "{gap}");
    let far = rogue.raft_refusal(append(vote(u64::MAX, rogue.node, true), vec![])).await;
    assert!(far.contains("term"), "{far}");
    let other = rogue.raft_refusal(append(vote(term, rogue.targets[0], true), vec![])).await;
    assert!(other.contains("another node"), "{other}");
    for leadership_transfer in [false, true] {
        let last = Some(proto::LogId { term, leader: 0, index: u64::MAX });
        let request = proto::VoteRequest { vote: vote(u64::MAX, rogue.node, false), last, leadership_transfer };
        assert!(rogue.raft_refusal(Kind::Vote(request)).await.contains("term"));
        assert!(rogue.raft_refusal(Kind::PreVote(request)).await.contains("term"));
    }
    let many = append(won, vec![proto::Entry::default(); 1 << 20]);
    assert!(rogue.raft_refusal(many).await.contains("too many"));
}

/// Requests that only forged evidence speaks for.
async fn lies_beside_raft(rogue: &Rogue, network: NetworkId) {
    use proto::control_request::Kind;
    use proto::control_response::Kind as Answer;
    let refused = |answer: Option<Answer>| assert!(matches!(answer, Some(Answer::Refused(_))), "{answer:?}");
    let header = |time| BatchHeader { time_ms: TimeMs(time), ..BatchHeader::of_nothing(network, Height(1_000_000)) };
    // That another voter signed twice, by this one's key.
    let signed = [1, 2].map(|time| {
        let signature = sign_batch(&rogue.key, &header(time).hash());
        (header(time), signature)
    });
    let forged = Conflict { node: rogue.targets[0], signed };
    refused(rogue.control(Kind::Conflict(forged.to_proto())).await);
    let marks = vec![proto::Mark { node: rogue.targets[1].0, index: u64::MAX }];
    refused(rogue.control(Kind::Marks(proto::Marks { marks })).await);
    refused(rogue.control(Kind::Approval(proto::Approval::default())).await);
    refused(rogue.control(Kind::Order(proto::SignedOrder::default())).await);
    let attest = proto::AttestRequest { first: 0, last: u64::MAX, digest: Bytes::from_static(&[0; 32]) };
    refused(rogue.control(Kind::Attest(attest)).await);
    // A batch that nobody has: it is not signed.
    let wanted = proto::CertifyRequest { height: u64::MAX, hash: Bytes::from_static(&[1; 32]) };
    let request = proto::ControlRequest { kind: Some(Kind::Certify(wanted)) }.encode_to_vec();
    if let Ok(answer) = rogue.call(rogue.targets[0], Channel::Control, request.into()).await {
        let kind = proto::ControlResponse::decode(answer).unwrap().kind;
        assert!(!matches!(kind, Some(Answer::Certify(_))), "{kind:?}");
    }
    // Places behind the last number: no node may fall over them.
    let place =
        proto::Place { first_task: 1, last_task: u64::MAX, locator: "x".into(), stage: 2, ..Default::default() };
    let report = proto::OutputProgress { output: "nobody".into(), task_number: u64::MAX, places: vec![place] };
    let _ = rogue.control(Kind::Progress(report)).await;
}

fn unverifiable(n: u64) -> proto::Message {
    let message = Message {
        api: Api::Apinode,
        project_id: ProjectId(7),
        project_version: "0.1".into(),
        data: format!("never sent {n}").into_bytes().into(),
        device: SigningKey::from_bytes([9; 32]).unwrap().address(),
        nonce: Bytes::new(),
        evidence: Evidence::Device(Signature([28; 65])),
        via: NodeId(1),
    };
    message.to_proto()
}

/// Frames without sense, too large ones, messages that nobody signed, and the same bundle again and again: on every
/// channel of every node, several at a time.
async fn flood(rogue: &Rogue, good: &proto::Message, random: &mut Random) {
    let bundle = |messages| Bytes::from(proto::Bundle { version: 1, messages }.encode_to_vec());
    let forged = bundle((0..500).map(unverifiable).collect());
    let again = bundle(vec![good.clone(); 500]);
    // Two bytes for each message, hundreds in memory.
    let dense = Bytes::from([0x12, 0].repeat(2 << 20));
    let mut calls = JoinSet::new();
    for round in 0..40_u64 {
        let garbage = Bytes::from(random.bytes(100_000));
        let requests = [
            (Channel::Bundle, forged.clone()),
            (Channel::Bundle, again.clone()),
            (Channel::Bundle, dense.clone()),
            (Channel::Bundle, garbage.clone()),
            (Channel::Raft, garbage.clone()),
            (Channel::Control, garbage.clone()),
            (Channel::Control, dense.clone()),
            (Channel::Snapshot, garbage),
        ];
        for target in &rogue.targets {
            for (channel, request) in requests.clone() {
                let mut client = rogue.handle.client(*target, channel);
                calls.spawn(async move {
                    let _ = client.call(&[request], CALL_TIMEOUT).await;
                });
            }
        }
        for n in 0..25 {
            rogue.handle.publish(bundle(vec![unverifiable(1_000 * round + n)]));
            rogue.handle.publish(Bytes::from(random.bytes(2_000)));
        }
        // So many at a time: more wait here, as at any honest client.
        while calls.len() > 200 {
            calls.join_next().await;
        }
    }
    // Larger than any frame may be.
    for channel in [Channel::Raft, Channel::Bundle] {
        let large = Bytes::from(vec![0; 64 << 20]);
        let answer = rogue.call(rogue.targets[0], channel, large).await;
        assert!(answer.is_err(), "{channel:?} took a frame of 64 MiB");
    }
    while calls.join_next().await.is_some() {}
}

async fn submit_all(device: &Device) -> Duration {
    let started = Instant::now();
    for _ in 0..MESSAGES {
        device.submit().await;
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_gone_bad_is_refused_and_changes_nothing() {
    let mut random = Random::from_environment();
    // The bundle that is replayed stays a repeat for as long as a slow machine needs for the attack.
    let default_project = ProjectSettings { retry_window_ms: 600_000, ..ProjectSettings::open() };
    let params = NetworkParams { default_project, ..open_params() };
    let mut cluster = Cluster::prepare(binary(), ClusterOptions::of(4).with_params(params));
    (0..4).for_each(|index| agree_to_rules(&cluster, index, RULES_NEWEST + REHEARSED_RULES));
    cluster.start_all().await;
    let network = cluster.genesis().id().unwrap();
    let device = Device::new(cluster.node(0).url());
    device.submit().await;
    cluster.wait_head_equal(SOON).await;
    // Again and again the leader tells all who has acknowledged what, and then makes the next rules hold. So two changes
    // later everyone knows what the rogue has acknowledged so far.
    let rules = cluster.status(0).await.unwrap().rules_version;
    rules_hold(&cluster, u64::from(rules) + 2).await;
    cluster.kill(ROGUE);
    cluster.wait_leader(SOON).await;
    let quiet = submit_all(&device).await;
    let before: Vec<u64> = (0..ROGUE).map(|index| cluster.rss_bytes(index)).collect();

    // Of another network: it is not even spoken to.
    let stranger = Rogue::start(&cluster, NetworkId([9; 32]), 0).await;
    let refused = stranger.connected(Channel::Raft, Bytes::from_static(b"x")).await;
    assert!(refused.is_err(), "{refused:?}");
    stranger.stop.cancel();

    // Its log is shorter than what it has acknowledged: no part for it.
    let forgetful = Rogue::start(&cluster, network, 0).await;
    let refused = forgetful.connected(Channel::Raft, Bytes::from_static(b"x")).await;
    assert!(refused.is_err(), "{refused:?}");
    forgetful.stop.cancel();

    // It claims a log without end, which nobody can contradict.
    let rogue = Rogue::start(&cluster, network, u64::MAX).await;
    let status = cluster.status(0).await.unwrap();
    let (term, height) = (status.term, status.head.height);
    lies_in_raft(&rogue, term, 1).await;
    lies_beside_raft(&rogue, network).await;
    let good = lockstep_identity::sign_body(&SigningKey::from_bytes([5; 32]).unwrap(), ProjectId(7), "0.1", "again");
    let address = SigningKey::from_bytes([5; 32]).unwrap().address();
    let _outcome_unknown = device.history.invoke(Content::signed(address, ProjectId(7), "0.1", b"again"));
    let good = lockstep_identity::apinode::parse(good.as_bytes()).unwrap().authenticate().unwrap();
    let good = good.message().to_proto();
    let (attacked, ()) = tokio::join!(submit_all(&device), flood(&rogue, &good, &mut random));
    println!("{MESSAGES} messages in {quiet:?} before, in {attacked:?} under attack");
    assert!(attacked < quiet * SLOWER_MAX + Duration::from_secs(5), "{quiet:?}, then {attacked:?}");
    for (index, before) in before.iter().enumerate() {
        let peak = cluster.node(index).process.peak_rss_bytes();
        println!("node {index}: {} MiB before, {} MiB at most", before >> 20, peak >> 20);
        assert!(peak < before + MEMORY_GROWTH_MAX, "node {index}: {before} bytes before, {peak} at most");
    }
    let status = cluster.status(0).await.unwrap();
    assert!(status.term < term + 100, "the terms are not used up: {} after {term}", status.term);
    assert!(status.head.height > height && status.complaints.is_empty(), "{:?}", status.complaints);

    // With the lies of a voter among the signatures, the honest ones are still a majority.
    eventually("what was ordered becomes final", SOON, async || {
        let head = cluster.status(0).await?.head;
        if head.final_height > height { Ok(()) } else { Err(format!("{head:?}")) }
    })
    .await;
    rogue.stop.cancel();
    cluster.start_node(ROGUE);
    cluster.wait_ready(ROGUE, SOON).await;
    cluster.wait_head_equal(SOON).await;
    cluster.assert_no_panics();
    let checked = audit(&mut cluster, &device.history).await;
    // The bundle that was replayed held one true message.
    assert!(checked.messages <= checked.acknowledged + 1, "{checked:?}");
    println!("{checked:?}");
}
