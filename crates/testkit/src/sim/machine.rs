//! A machine: what a node runs on, what is left of it when it goes down, and how it is set up.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lockstep_consensus::runtime::Scope;
use lockstep_node::clock::SimulatedClock;
use lockstep_node::config::Config;
use lockstep_types::genesis::{AGE_MS_MAX, RETRY_MARGIN_MS, RETRY_WINDOW_MS_MIN};
use lockstep_types::{DevicePolicy, Genesis, Incarnation, Member, NetworkParams, NodeId, ProjectSettings, SigningKey};

use super::bugs::Bug;
use super::disk::Disk;
use super::scenario::Scenario;
use super::world::Running;
use super::years;

/// Where batches are forgotten: what is older than this goes, which is as soon as a network may. The same content is a retry
/// for the shortest window.
pub(super) const KEPT_MS: u64 = RETRY_WINDOW_MS_MIN + RETRY_MARGIN_MS + AGE_MS_MAX;
/// Where batches are forgotten: messages of a group, and its age. What is in an open group is not forgotten, so that is a
/// little longer than the rest is kept.
const OPEN_GROUP: (u64, u64) = (20, KEPT_MS + 2_000);

/// A machine.
pub(super) struct Machine {
    pub member: Member,
    pub home: PathBuf,
    pub key: SigningKey,
    pub incarnation: Incarnation,
    /// Whom it found when it joined; empty for a member of the genesis.
    pub found: Vec<(NodeId, Member)>,
    pub disk: Disk,
    pub clock: SimulatedClock,
    pub rules_max: u32,
    /// Counts its starts.
    pub life: u64,
    /// The node's tasks, while it is being started or up.
    pub scope: Option<Scope>,
    pub running: Option<Running>,
    /// It lost its disk: it stays off.
    pub is_lost: bool,
    /// It has left the network, and was put away.
    pub is_gone: bool,
}

/// Who wants to become a member.
#[derive(Clone)]
pub(super) struct Newcomer {
    pub member: Member,
    pub key: SigningKey,
    pub home: PathBuf,
}

pub(super) fn key(number: u64) -> SigningKey {
    let mut bytes = [7; 32];
    bytes[24..].copy_from_slice(&(number + 1).to_be_bytes());
    SigningKey::from_bytes(bytes).expect("not zero, and below the order of the curve")
}

fn incarnation(number: u64) -> Incarnation {
    let mut bytes = [0xa5; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Incarnation(bytes)
}

/// What the operator of a machine gives to the others: `number` is that of its store, `name` and `key` may be those of
/// a machine before.
pub(super) fn member(number: u64, name: String, key: &SigningKey) -> Member {
    Member {
        name,
        public_key: hex::encode(key.public().compressed()),
        incarnation: incarnation(number),
        p2p: format!("/ip4/127.0.0.1/tcp/{}", 9100 + number),
        http: format!("http://127.0.0.1:{}", 9000 + number),
    }
}

/// Makes an empty home below `homes`.
pub(super) fn make_home(homes: &Path, number: u64, member: &Member) -> Result<PathBuf> {
    let home = homes.join(format!("{}-{number}", member.name));
    std::fs::create_dir_all(home.join("store"))?;
    std::fs::write(home.join("store/INCARNATION"), format!("{}\n", member.incarnation))?;
    Ok(home)
}

pub(super) fn genesis(scenario: &Scenario) -> Result<Genesis> {
    let first = |number: u64| member(number, format!("n{number}"), &key(number));
    let mut params = NetworkParams { allow_unsigned: true, allow_unknown_projects: true, ..NetworkParams::default() };
    let margin_ms = if scenario.bugs.has(Bug::WindowByProposal) { RETRY_MARGIN_MS } else { 0 };
    params.default_project = ProjectSettings {
        retry_window_ms: scenario.retry_window_ms - margin_ms,
        devices: Some(DevicePolicy::Any),
        public: true,
        ..ProjectSettings::open()
    };
    if scenario.forgets {
        params.retention.age_ms = KEPT_MS;
        (params.default_project.group_messages_max, params.default_project.group_age_max_ms) = OPEN_GROUP;
    }
    if scenario.years.is_some() {
        params.retention.age_ms = years::KEPT_MS;
    }
    Ok(Genesis::new("sim", (0..scenario.nodes as u64).map(first).collect(), params)?)
}

pub(super) fn config(scenario: &Scenario, rules_max: u32) -> Result<Config> {
    let text = format!(
        r#"
        [http]
        listen = "127.0.0.1:1"
        [p2p]
        listen = ["/ip4/127.0.0.1/tcp/1"]
        [raft]
        log_entries_max = {}
        log_kept_entries = {}
        [upgrade]
        rules_max = {rules_max}
        [[output]]
        name = "table"
        scope = "network"
        kind = "sqlite"
        path = "table.sqlite"
        [[output]]
        name = "blobs"
        scope = "network"
        kind = "sqlite"
        path = "blobs.sqlite"
        "#,
        scenario.log_entries_max,
        scenario.log_entries_max / 2
    );
    Ok(Config::parse(&text)?)
}
