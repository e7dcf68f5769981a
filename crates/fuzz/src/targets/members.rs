//! What members, newcomers, gateways and strangers send each other.

use bytes::Bytes;
use lockstep_network::limits::{BUNDLE_BYTES_MAX, HELLO_BYTES_MAX};
use lockstep_types::members::member_to_proto;
use lockstep_types::{Address, OrderKind, proto};
use prost::Message as _;

use crate::target::Target;
use crate::world::{GENESIS, PAST, key, member, message, order, task_message, vouched};

pub(super) const TARGETS: &[Target] = &[
    Target::new("frames", frame_seeds, |bytes| lockstep_network::fuzz::frames(bytes, BUNDLE_BYTES_MAX) > 0),
    Target::new("hello", hello_seeds, |bytes| {
        bytes.len() as u64 <= HELLO_BYTES_MAX && lockstep_network::fuzz::hello(bytes)
    }),
    Target::new("address", address_seeds, |bytes| lockstep_network::fuzz::address(super::text(bytes))),
    Target::new("bundle", bundle_seeds, |bytes| lockstep_node::fuzz::bundle(Bytes::copy_from_slice(bytes))),
    Target::new("control", control_seeds, |bytes| lockstep_node::fuzz::control_request(Bytes::copy_from_slice(bytes))),
    Target::new("control_answer", control_answer_seeds, |bytes| {
        lockstep_node::fuzz::control_answer(Bytes::copy_from_slice(bytes))
    }),
    Target::new("join", join_seeds, |bytes| lockstep_node::fuzz::join(Bytes::copy_from_slice(bytes))).with_factor(256),
    Target::new("raft", raft_seeds, |bytes| lockstep_consensus::fuzz::raft_request(Bytes::copy_from_slice(bytes)))
        // As many entries as an append may have.
        .with_factor(256),
    Target::new("raft_answer", raft_answer_seeds, |bytes| {
        lockstep_consensus::fuzz::raft_answer(Bytes::copy_from_slice(bytes))
    }),
    Target::new("log", log_seeds, read_log),
    Target::new("announcement", announcement_seeds, read_announcement),
];

fn frame_seeds() -> Vec<Vec<u8>> {
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    let refusal = [&(1_u32 << 31 | 9).to_be_bytes()[..], b"busy: no."].concat();
    vec![frame(b""), [frame(b"hello"), frame(&[7; 300])].concat(), [frame(b"x"), refusal].concat()]
}

fn hello_seeds() -> Vec<Vec<u8>> {
    let hello = proto::Hello {
        version: 1,
        network: Bytes::from_static(&[1; 32]),
        epoch: 0,
        node: 2,
        incarnation: Bytes::from_static(&[2; 16]),
        last_index: 7,
        format: lockstep_types::genesis::FORMAT,
    };
    vec![hello.encode_to_vec()]
}

fn address_seeds() -> Vec<Vec<u8>> {
    let peer = lockstep_network::peer_id_of(&key(1).public());
    vec![b"/ip4/127.0.0.1/tcp/9100".to_vec(), format!("/dns4/node.example/tcp/9100/p2p/{peer}").into_bytes()]
}

fn bundle_seeds() -> Vec<Vec<u8>> {
    let all = [message(100, "21.5"), task_message(101, 7), vouched("x")];
    let messages = all.iter().map(|message| message.message().to_proto()).collect();
    vec![proto::Bundle { version: 1, messages, ages_ms: vec![0, 300, 15_000] }.encode_to_vec()]
}

fn control_seeds() -> Vec<Vec<u8>> {
    use proto::control_request::Kind;
    let batch = PAST.view.batches.values().next().expect("there is a batch");
    let (hash, header) = (Bytes::copy_from_slice(&batch.header.hash().0), Some(batch.header.to_proto()));
    let signed = proto::SignedHeader { header: header.clone(), signature: Bytes::from_static(&[1; 65]) };
    let addresses = vec![Address([1; 20]), Address([2; 20])];
    let progress = proto::OutputProgress { output: "main".into(), task_number: 7, places: Vec::new() };
    let requests = [
        Kind::Certify(proto::CertifyRequest { height: 1, hash: hash.clone() }),
        Kind::Marks(proto::Marks { marks: vec![proto::Mark { node: 2, index: 9 }] }),
        Kind::Conflict(proto::Conflict { node: 2, signed: vec![signed.clone(), signed] }),
        Kind::Order(order(1, OrderKind::RemoveDevices(addresses)).to_proto()),
        Kind::Attest(proto::AttestRequest { first: 1, last: 2, digest: hash.clone() }),
        Kind::Progress(progress),
        Kind::OutputChange(proto::OutputChange { output: "main".into(), state: 3 }),
        Kind::Outputs(proto::OutputsRequest {}),
        Kind::Barrier(proto::BarrierRequest {}),
    ];
    requests.map(|kind| proto::ControlRequest { kind: Some(kind) }.encode_to_vec()).to_vec()
}

fn control_answer_seeds() -> Vec<Vec<u8>> {
    use proto::control_response::Kind;
    let batch = PAST.view.batches.values().next().expect("there is a batch");
    let (hash, header) = (Bytes::copy_from_slice(&batch.header.hash().0), Some(batch.header.to_proto()));
    let answers = [
        Kind::Certify(proto::CertifyResponse { hash, signature: Bytes::from_static(&[1; 65]), header }),
        Kind::Marks(proto::MarksResponse { rules_version: 6 }),
        Kind::Outputs(proto::OutputsResponse { names: vec!["main".into()] }),
        Kind::Barrier(proto::BarrierResponse { index: 9 }),
    ];
    answers.map(|kind| proto::ControlResponse { kind: Some(kind) }.encode_to_vec()).to_vec()
}

fn join_seeds() -> Vec<Vec<u8>> {
    let record = Some(member_to_proto(&member(4)));
    let request = proto::JoinRequest { version: 1, member: record.clone() };
    let known = proto::KnownMember { node: 4, record, role: 1, admitted: 2 };
    let genesis = GENESIS.to_text().expect("the genesis is written");
    let answer = proto::JoinResponse { genesis, members: vec![known], node: 4, ..Default::default() };
    vec![request.encode_to_vec(), answer.encode_to_vec()]
}

fn vote(term: u64, leader: u64, committed: bool) -> Option<proto::Vote> {
    Some(proto::Vote { term, leader, committed })
}

fn id(term: u64, index: u64) -> Option<proto::LogId> {
    Some(proto::LogId { term, leader: 0, index })
}

fn entries() -> Vec<proto::Entry> {
    use proto::entry::Payload;
    let voters = proto::VoterSet { ids: vec![1, 2, 3] };
    let membership = proto::Membership { configs: vec![voters], nodes: vec![1, 2, 3, 4] };
    let first = proto::Entry { id: id(5, 8), payload: Some(Payload::Membership(membership)) };
    let commands = (9..).zip(&PAST.commands).take(3);
    let of = |(index, command): (u64, &Bytes)| proto::Entry {
        id: id(5, index),
        payload: Some(Payload::Command(command.clone())),
    };
    [first].into_iter().chain(commands.map(of)).chain([proto::Entry { id: id(5, 12), payload: None }]).collect()
}

fn raft_seeds() -> Vec<Vec<u8>> {
    use proto::raft_request::Kind;
    let ask = |term| proto::VoteRequest { vote: vote(term, 2, false), last: id(5, 12), leadership_transfer: false };
    let all = [
        Kind::Append(proto::AppendRequest {
            vote: vote(5, 2, true),
            previous: id(4, 7),
            entries: entries(),
            committed: id(5, 10),
        }),
        Kind::Vote(ask(6)),
        Kind::PreVote(ask(7)),
        Kind::Transfer(proto::TransferLeader { from: vote(5, 2, true), to: 1, last: id(5, 12) }),
        Kind::Offer(proto::SnapshotOffer {
            vote: vote(5, 2, true),
            last: id(5, 12),
            membership_id: id(5, 8),
            membership: Some(proto::Membership { configs: vec![proto::VoterSet { ids: vec![1] }], nodes: vec![1] }),
            id: Bytes::from_static(&[1; 32]),
            files: vec![proto::SnapshotFile { name: "CURRENT".into(), bytes: 16, sum: Bytes::from_static(&[3; 32]) }],
        }),
    ];
    all.map(|kind| proto::RaftRequest { kind: Some(kind) }.encode_to_vec()).to_vec()
}

fn raft_answer_seeds() -> Vec<Vec<u8>> {
    use proto::raft_response::Kind;
    let all = [
        Kind::Append(proto::AppendResponse { result: 1, matched: None, vote: None }),
        Kind::Append(proto::AppendResponse { result: 3, matched: None, vote: vote(6, 3, false) }),
        Kind::Vote(proto::VoteResponse { vote: vote(6, 2, false), granted: true, last: id(5, 12) }),
        Kind::Offer(proto::SnapshotAnswer { vote: vote(5, 2, true), bytes_total: 9, ..Default::default() }),
    ];
    all.map(|kind| proto::RaftResponse { kind: Some(kind) }.encode_to_vec()).to_vec()
}

fn log_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = entries().iter().map(proto::Entry::encode_to_vec).collect();
    seeds.push([[0; 7], [2; 7]].concat());
    seeds.push(vec![5; 48]);
    // A whole log: pairs of a key and a value behind their lengths.
    let piece = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)], bytes].concat();
    let pair = |index: u64| {
        let entry = proto::Entry { id: id(5, index), payload: None }.encode_to_vec();
        [piece(&[b"l", &index.to_be_bytes()[..]].concat()), piece(&entry)].concat()
    };
    seeds.push((1..5).flat_map(pair).collect());
    seeds
}

fn read_log(bytes: &[u8]) -> bool {
    lockstep_consensus::fuzz::log_record(Bytes::copy_from_slice(bytes)) | lockstep_consensus::fuzz::whole_log(bytes)
}

fn announcement_seeds() -> Vec<Vec<u8>> {
    let task = crate::world::task_id();
    vec![lockstep_announce::Announcement { project: crate::world::OPEN, task }.to_bytes()]
}

fn read_announcement(bytes: &[u8]) -> bool {
    use lockstep_announce::Announcement;
    Announcement::from_bytes(bytes).is_some_and(|read| {
        assert_eq!(Announcement::from_bytes(&read.to_bytes()), Some(read));
        true
    })
}
