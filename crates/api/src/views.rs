//! What the doors show: JSON of `/api`. Ids are hex with `0x`, payloads standard base64, times milliseconds.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use lockstep_types::proof::Boundary;
use lockstep_types::{
    Address, BatchHash, Digest, Epoch, Height, MessageId, NetworkId, NodeId, OutputName, ProjectId, ProjectSettings,
    Sequence, Stage, TaskId, TaskNumber, TimeMs,
};
use serde::{Deserialize, Serialize};

/// Bytes as views show them.
pub fn to_base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Reads what [`to_base64`] wrote.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Part that a node has in consensus now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It proposes batches.
    Leader,
    /// It votes and follows.
    Follower,
    /// It follows without a vote.
    Observer,
    /// It asks to become the leader.
    Candidate,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its raft id.
    pub id: NodeId,
    /// Its libp2p peer id.
    pub peer_id: String,
    /// Its EVM address.
    pub address: Address,
}

/// The leader, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderView {
    /// Its raft id.
    pub id: NodeId,
    /// URL of its HTTP interface.
    pub http: String,
}

/// The newest batch applied on this node. Zeros before the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadView {
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: BatchHash,
    /// Sequence of the newest message up to it.
    pub sequence: Sequence,
    /// Height of the newest certificate: this batch and all before it are final.
    #[serde(default)]
    pub final_height: Height,
    /// Oldest height that is kept; 0 while all are.
    #[serde(default)]
    pub oldest_height: Height,
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Its raft id.
    pub id: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// Whether this node has a connection to it.
    pub connected: bool,
    /// URL of its HTTP interface.
    pub http: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An output and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputView {
    /// Its name.
    pub name: String,
    /// The last batch that it has whole.
    pub height: Height,
    /// Final batches that it does not have whole.
    pub lag: u64,
    /// Why it does not go on, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Tasks that it never got, because they were forgotten first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<GapView>,
    /// Tasks that it refused, and that wait to be tried again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
    /// Whether this node's operator holds it up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Whether it was removed from the network, though this node's configuration still names it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// An output for which batches are kept that would be forgotten without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBackView {
    /// Its name: the one that is furthest behind.
    pub output: String,
    /// The first task that it lacks.
    pub next_task: TaskNumber,
    /// The oldest batch that is kept for it.
    pub height: Height,
}

/// Tasks that an output never got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapView {
    /// The first of them.
    pub first: TaskNumber,
    /// The last of them.
    pub last: TaskNumber,
}

/// How far the chain is followed that says which devices there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainView {
    /// The last block that the log has; null before the first.
    pub block: Option<u64>,
    /// Confirmed blocks that the log does not have, as this node's endpoint says; null where it has none, or has not
    /// answered yet. Some are normal where nothing happened in them.
    pub behind: Option<u64>,
    /// Why it is not followed, or not attested, as far as this node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How announcing tasks to W3bstream stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct W3bstreamView {
    /// This node's peer id on W3bstream's network.
    pub peer_id: String,
    /// Peers of that network that listen to announcements.
    pub peers: u64,
    /// Tasks that this node has announced since it started, each counted once.
    pub announced: u64,
    /// Tasks that wait to be announced, or to be announced again.
    pub waiting: u64,
    /// Why it does not get on, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `/api/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The network's name.
    pub network: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// This node.
    pub node: NodeView,
    /// Its part now.
    pub role: Role,
    /// Its raft term.
    pub term: u64,
    /// The leader; null when none is known.
    pub leader: Option<LeaderView>,
    /// Its newest batch.
    pub head: HeadView,
    /// The chain of the network's devices; absent where devices come from owners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainView>,
    /// Announcements to W3bstream; absent where this node makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w3bstream: Option<W3bstreamView>,
    /// Digest of all that the log has done to the state so far; equal on nodes that have applied the same.
    #[serde(default)]
    pub effects: Digest,
    /// What an operator has to look at; empty when all is well.
    #[serde(default)]
    pub complaints: Vec<String>,
    /// Rules of `apply` that hold now.
    #[serde(default)]
    pub rules_version: u32,
    /// The copy of the state that this node fetches, because the log no longer has what it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetching: Option<TransferView>,
    /// Copies of the state that this node, the leader, sends to others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sending: Vec<TransferView>,
    /// The other members.
    pub peers: Vec<PeerView>,
    /// The outputs.
    pub outputs: Vec<OutputView>,
    /// The output for which more is kept than the network's limits say; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<HeldBackView>,
    /// The program's version.
    pub version: String,
}

/// A copy of the state on its way between two members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    /// The other end.
    pub node: NodeId,
    /// Bytes that have arrived.
    pub bytes: u64,
    /// Bytes in all.
    pub of: u64,
    /// What keeps it from going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A message in a [`BatchView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchMessageView {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its name.
    pub id: MessageId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its project's version.
    pub project_version: String,
    /// Its device; null where its protocol names none.
    pub device: Option<Address>,
}

/// `/api/batches/{height}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchView {
    /// Place in the chain, from 1.
    pub height: Height,
    /// Hash of the header.
    pub hash: BatchHash,
    /// Hash of the batch before.
    pub parent: BatchHash,
    /// The leader's clock at proposal.
    pub time_ms: TimeMs,
    /// Sequence of the first message.
    pub first_sequence: Sequence,
    /// Messages, in order.
    pub messages: Vec<BatchMessageView>,
    /// Tasks that it closed.
    pub tasks: Vec<TaskId>,
}

/// `/api/batches`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchesView {
    /// Batches by ascending height.
    pub batches: Vec<BatchView>,
    /// Height of the newest batch on this node.
    pub head: Height,
}

/// How far a message or task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// Known to this node, without a position.
    Pending,
    /// It has its position.
    Sequenced,
    /// It is in a task.
    Packed,
    /// Its task is in every output.
    Published,
}

/// Where a message came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EvidenceView {
    /// Its device signed it.
    Device,
    /// A node gave its word.
    Ingress {
        /// That node's address.
        node: Address,
    },
    /// It came encrypted, and the node that opened it gave its word for what it found.
    Envelope {
        /// That node's address.
        node: Address,
        /// keccak256 of the envelope.
        envelope: Digest,
    },
    /// Its device signed it, in the API of 2025.
    Task {
        /// Members of the payload whose values are signed once more.
        signed_keys: Vec<String>,
    },
}

/// `/api/messages/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageView {
    /// Its name.
    pub id: MessageId,
    /// How far it is.
    pub status: Progress,
    /// Its place in the order; null while pending.
    pub sequence: Option<Sequence>,
    /// Its batch; null while pending.
    pub height: Option<Height>,
    /// Its place in its batch, from 0; null while pending.
    pub index: Option<u64>,
    /// Its task; null while its group is open.
    pub task_id: Option<TaskId>,
    /// Its project.
    pub project_id: ProjectId,
    /// Its project's version.
    pub project_version: String,
    /// Its device; null where its protocol names none.
    pub device: Option<Address>,
    /// Payload, base64; null where payloads are not public.
    pub data: Option<String>,
    /// The evidence's signature, hex; null where payloads are not public.
    pub signature: Option<String>,
    /// Where it came from.
    pub evidence: EvidenceView,
    /// Time of its batch; null while pending.
    pub time_ms: Option<TimeMs>,
    /// Words with which the project's rules marked it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// A message in a [`TaskView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskMessageView {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its name.
    pub id: MessageId,
    /// Payload, base64; absent where payloads are not public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// `/api/tasks/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Its name.
    pub id: TaskId,
    /// Its place among all tasks.
    pub number: TaskNumber,
    /// Its project.
    pub project_id: ProjectId,
    /// Its project's version.
    pub project_version: String,
    /// Its device; null where it has none.
    pub device: Option<Address>,
    /// Its messages, in order.
    pub messages: Vec<TaskMessageView>,
    /// How far it is: packed or published.
    pub status: Progress,
    /// Signature with the task key, hex; absent where this node has no such key or payloads are not public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Time of the batch that closed it.
    pub time_ms: TimeMs,
    /// That batch.
    pub height: Height,
    /// What became of it on the chain, as this node has read it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<TaskChainView>,
    /// Where the network's outputs have it, as far as this node knows. Only where one task is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<ReceiptView>,
    /// What the project's rules made of it; `Default` where they say nothing.
    #[serde(flatten)]
    pub ruled: RuledView,
}

/// What a project's rules made of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuledView {
    /// The name of its group; empty where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The number of its window of the devices' time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<i64>,
    /// What its messages came to, base64; absent where they stand for themselves, or payloads are not public. The signature
    /// is over it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The outputs that it is for; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<BTreeSet<OutputName>>,
}

/// Where an output of the network has a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptView {
    /// The output.
    pub output: OutputName,
    /// Where, in words of its store.
    pub locator: String,
    /// What the store commits to the task with, hex with 0x; absent where it has nothing of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commitment: Option<String>,
    /// Height of the store's own chain, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<Height>,
    /// How sure it is that the task stays there.
    pub stage: Stage,
    /// First and last task that are in the same place: a table, or a blob.
    pub tasks: (TaskNumber, TaskNumber),
}

/// `/api/tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksView {
    /// Final tasks, by ascending number.
    pub tasks: Vec<TaskView>,
    /// What to ask for next as `after`: everything up to this number was looked at. Null while nothing is final.
    pub next: Option<TaskNumber>,
    /// Number of the newest final task of the network; null while there is none.
    pub newest: Option<TaskNumber>,
}

/// A state of a task on the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskChainView {
    /// `assigned` or `settled`.
    pub state: String,
    /// When this node read it, `confirmations` blocks after it happened at least.
    pub time_ms: TimeMs,
}

/// `/api/boundaries`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundariesView {
    /// Certified changes of the members, by ascending height.
    pub boundaries: Vec<Boundary>,
}

/// A member in [`MembersView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its id, never used again.
    pub id: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// What it may do.
    pub role: lockstep_types::MemberRole,
    /// Its EVM address.
    pub address: Address,
    /// Multiaddress for other nodes.
    pub p2p: String,
    /// URL of its HTTP interface.
    pub http: String,
    /// Height of the batch with which it was admitted; 0 at genesis.
    pub admitted: Height,
    /// Whether this node has a connection to it; true for itself.
    pub connected: bool,
}

/// A proposal that waits for approvals, in [`MembersView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalView {
    /// Its digest, hex.
    pub id: String,
    /// What would change, for people.
    pub change: String,
    /// Who has approved it.
    pub approvals: Vec<NodeId>,
    /// How many approvals it needs.
    pub needed: usize,
    /// When it expires.
    pub expires_ms: TimeMs,
    /// The proposal itself (protobuf, hex), for whoever signs an approval.
    pub record: String,
}

/// A newcomer that asks to join, in [`MembersView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestView {
    /// Names the request.
    pub id: String,
    /// The newcomer's name for itself.
    pub name: String,
    /// Its EVM address: compare it with what its operator says.
    pub address: Address,
    /// Multiaddress for other nodes.
    pub p2p: String,
    /// URL of its HTTP interface.
    pub http: String,
    /// Seconds since it first asked.
    pub asked_seconds_ago: u64,
    /// Its record (protobuf, hex), for whoever proposes to admit it.
    pub record: String,
}

/// `/api/members`, and what an operator sees of membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersView {
    /// The network's id.
    pub network_id: lockstep_types::NetworkId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Hash of the set that holds from the next batch on.
    pub members_hash: String,
    /// How many changes were finished.
    pub changes: u64,
    /// Everyone who is or was a member.
    pub members: Vec<MemberView>,
    /// The change that is under way, for people.
    pub pending: Option<String>,
    /// Proposals that wait for approvals.
    pub proposals: Vec<ProposalView>,
    /// Newcomers that asked this node; told to its operator only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestView>,
}

/// A project as its owner set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectView {
    /// The project.
    pub id: ProjectId,
    /// The address of its owner's key; null where nobody owns it.
    pub owner: Option<Address>,
    /// Orders that were carried out; the next one has the number after it.
    pub orders: u64,
    /// Its settings.
    pub settings: ProjectSettings,
    /// Its rules, by the batch from which they hold, the oldest that is remembered first.
    #[serde(default)]
    pub rules: Vec<RulesView>,
    /// What its rules took and refused; null where it never had any, and in the list of all projects.
    #[serde(default)]
    pub figures: Option<RulesFigures>,
}

/// Rules of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesView {
    /// The first batch that they hold for.
    pub from_height: Height,
    /// Hash of the bundle; null: from here on there are none.
    pub hash: Option<Digest>,
    /// Whether they hold for the next batch.
    pub holds: bool,
}

/// What a project's rules took and refused, since it first had any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesFigures {
    /// Messages that were taken.
    pub taken: u64,
    /// Of these, flagged ones.
    pub flagged: u64,
    /// Of these, messages of windows that were passed.
    #[serde(default)]
    pub late: u64,
    /// Tasks that were made since the project had rules first.
    #[serde(default)]
    pub tasks: u64,
    /// Messages that were not, by stage and reason (`filter:test`). What a node refused at its door is not among them.
    pub refused: BTreeMap<String, u64>,
}

/// `/api/projects`, with what an order is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectsView {
    /// The network's id.
    pub network_id: NetworkId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Registered projects, by id.
    pub projects: Vec<ProjectView>,
}

/// A device that somebody let submit to a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// The device.
    pub device: Address,
    /// Whether it is registered.
    pub registered: bool,
    /// Whether the project's owner lists it.
    pub listed: bool,
    /// Whether the chain approves it.
    pub approved: bool,
    /// Whether it may submit now.
    pub permitted: bool,
    /// Whether it has a DID document, which encrypted messages need.
    pub has_document: bool,
}

/// `/api/projects/{id}/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesView {
    /// Devices by address.
    pub devices: Vec<DeviceView>,
    /// Where to go on; null at the end.
    pub next: Option<Address>,
}
