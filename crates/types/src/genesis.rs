//! The genesis of a network: its members, their keys and stores, and its parameters. Every operator holds the same
//! file; its hash is part of every protocol id and every batch header.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hash::keccak256;
use crate::ids::{Address, Digest, Incarnation, NetworkId, NodeId, ProjectId, TaskNumber};
use crate::members::{ADDRESS_BYTES_MAX, MemberSet, SetMember};
use crate::registry::{DevicePolicy, READERS_MAX, SIGNED_KEYS_MAX};
use crate::signature::{PublicKey, SignatureError};
use crate::task::{GROUP_AGE_MS_MAX, GROUP_BYTES_MAX, GROUP_MESSAGES_MAX};
use crate::task_v1::SignedKey;

const GENESIS_DOMAIN: &[u8] = b"lockstep/genesis/v1";
/// Version of the file.
pub const GENESIS_VERSION: u32 = 1;
/// Counts the changes of formats and of what `apply` computes before the first release: networks of other numbers are
/// refused, homes and peers alike. After the release what changes has versions of its own, and this stays as it is.
pub const FORMAT: u32 = 1;
/// Most members of a network at genesis.
pub const MEMBERS_MAX: usize = 64;
/// Shortest retry window: what one call brings to the leader more than once is never taken for a new reading. Its copies
/// have one beginning, since their waits in nodes' pools are counted. What is not counted, six seconds on a connection and
/// four between two leaders' clocks, is less than this window and [`RETRY_MARGIN_MS`].
pub const RETRY_WINDOW_MS_MIN: u64 = 6_000;
/// The retry window that has no end but that of the first message itself: the same content is a retry for as long as that
/// is kept.
pub const RETRY_WINDOW_FOR_EVER_MS: u64 = u64::MAX;
/// A repeat counts as one for so much longer than the retry window: by its time of arrival, which is known only as well as
/// leaders' clocks agree, and but for the time on the way between two nodes. It covers clocks as far apart as they may be
/// and two seconds on the way; or a connection that stands still for as long as one may.
pub const RETRY_MARGIN_MS: u64 = 6_000;
/// Oldest that a message may be when it is proposed, by the time from its arrival at a node. Above the honest ones: a node
/// holds a request for four seconds, and pools hold messages for five, that of the node and that of the leader.
pub const AGE_MS_MAX: u64 = 15_000;
/// Smallest limit on bytes: below, the store's own buffers and files are the most of it.
pub const RETENTION_BYTES_MIN: u64 = 64 << 20;
/// Largest `message_bytes_max` that a network can have: a message must fit one bundle between nodes.
pub const MESSAGE_BYTES_MAX: u64 = 512 << 10;

/// A genesis that cannot start a network.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// Not the JSON that it should be.
    #[error("the genesis is not readable: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Made by a newer Lockstep.
    #[error("the genesis has version {0}, this program knows {GENESIS_VERSION}; upgrade it")]
    Newer(u32),
    /// Made by a program from before the first release that computes other things.
    #[error(
        "the network was formed by a program with format {0}, this one has {FORMAT}: before the first release formats \
         change without a way from one to the next; form the network anew, or use the program that formed it"
    )]
    Format(u32),
    /// A member's key is not a key.
    #[error("member {name}: {reason}")]
    Key {
        /// The member's name.
        name: String,
        /// What is wrong.
        reason: SignatureError,
    },
    /// A rule on names, numbers or addresses is broken.
    #[error("{0}")]
    Invalid(String),
}

/// What an operator gives to the others, so that they can form a network: no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The operator's name for the node: 1 to 64 of `a-z 0-9 - _ .`
    pub name: String,
    /// Compressed public key, hex.
    pub public_key: String,
    /// The number made with the node's store.
    pub incarnation: Incarnation,
    /// Multiaddr at which the others reach it, without `/p2p`.
    pub p2p: String,
    /// URL of its HTTP interface, for redirects and people.
    pub http: String,
}

impl Member {
    /// Checks name, key and addresses.
    pub fn check(&self) -> Result<(), GenesisError> {
        self.key()?;
        if !is_name(&self.name) {
            return Err(GenesisError::Invalid(format!("bad name {:?}: 1 to 64 of a-z 0-9 - _ .", self.name)));
        }
        let fits = |text: &str| text.len() <= ADDRESS_BYTES_MAX && !text.contains(char::is_control);
        if !fits(&self.p2p) || !fits(&self.http) {
            let reason = format!("member {}: an address has at most {ADDRESS_BYTES_MAX} bytes", self.name);
            return Err(GenesisError::Invalid(reason));
        }
        Ok(())
    }

    /// The member's key.
    pub fn key(&self) -> Result<PublicKey, GenesisError> {
        let bad = |reason| GenesisError::Key { name: self.name.clone(), reason };
        let digits = self.public_key.strip_prefix("0x").unwrap_or(&self.public_key);
        let bytes = hex::decode(digits).map_err(|_| bad(SignatureError::Key))?;
        PublicKey::from_sec1(&bytes).map_err(bad)
    }
}

/// How a project's messages are packed, and who may read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectSettings {
    /// A group becomes a task at this many messages.
    pub group_messages_max: u64,
    /// … or at this many payload bytes.
    pub group_bytes_max: u64,
    /// … or when it is this old.
    pub group_age_max_ms: u64,
    /// The same content within this time, by when its requests came in, is a retry and gets its first position.
    pub retry_window_ms: u64,
    /// Whether anyone may read its payloads.
    pub public: bool,
    /// Which devices it takes; registered ones where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<DevicePolicy>,
    /// Members of a payload whose values a device signs once more, in the API of 2025. Their values are whole numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signed_keys: Vec<SignedKey>,
    /// Whether a device's nonces must ascend, in the API of 2025. It cannot be switched off again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict_nonces: bool,
    /// Hashes of the tokens that open its payloads to whoever shows one, where they are not public.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<Digest>,
}

impl ProjectSettings {
    /// The defaults of a project that takes any device. For test networks.
    pub fn open() -> Self {
        Self { devices: Some(DevicePolicy::Any), ..Self::default() }
    }

    /// Which devices it takes.
    pub fn policy(&self) -> DevicePolicy {
        self.devices.unwrap_or(DevicePolicy::Registered)
    }

    /// Checks its numbers and names.
    pub fn check(&self) -> Result<(), GenesisError> {
        let invalid = |reason: String| Err(GenesisError::Invalid(reason));
        if self.group_messages_max == 0 || self.group_bytes_max == 0 || self.group_age_max_ms == 0 {
            return invalid("limits of a group must be at least 1".into());
        }
        for (name, value, max) in [
            ("group_messages_max", self.group_messages_max, GROUP_MESSAGES_MAX),
            ("group_bytes_max", self.group_bytes_max, GROUP_BYTES_MAX),
            ("group_age_max_ms", self.group_age_max_ms, GROUP_AGE_MS_MAX),
        ] {
            if value > max {
                return invalid(format!("{name} must be at most {max}"));
            }
        }
        if self.retry_window_ms < RETRY_WINDOW_MS_MIN {
            return invalid(format!("retry_window_ms must be at least {RETRY_WINDOW_MS_MIN}"));
        }
        if self.signed_keys.len() > SIGNED_KEYS_MAX {
            return invalid(format!("signed_keys has at most {SIGNED_KEYS_MAX} names"));
        }
        if self.readers.len() > READERS_MAX {
            return invalid(format!("readers has at most {READERS_MAX} hashes"));
        }
        Ok(())
    }
}

impl Default for ProjectSettings {
    fn default() -> Self {
        Self {
            group_messages_max: 1,
            group_bytes_max: 1 << 20,
            group_age_max_ms: 5_000,
            retry_window_ms: 10_000,
            public: false,
            devices: None,
            signed_keys: Vec::new(),
            strict_nonces: false,
            readers: Vec::new(),
        }
    }
}

/// Contracts on an EVM chain that say which devices there are, and which project they may submit to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSource {
    /// Id of the chain.
    pub chain_id: u64,
    /// The ioID registry: `NewDevice`, `UpdateDevice`, `documentURI`.
    pub registry: Address,
    /// The contract that approves devices for projects: `Approve`, `Unapprove`, `approved`.
    pub project_device: Address,
    /// The contract whose `TaskAssigned` and `TaskSettled` are followed for the states of tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_manager: Option<Address>,
    /// The first block that is read.
    pub start_block: u64,
    /// Blocks that must stand on a block before it is read.
    #[serde(default = "confirmations_default")]
    pub confirmations: u64,
    /// Voters that must have read the same, the leader included.
    #[serde(default = "attestations_default")]
    pub attestations: u64,
}

fn confirmations_default() -> u64 {
    12
}

fn attestations_default() -> u64 {
    1
}

/// What is kept of the past. Zeros: everything, for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Batches older than this may go, once every output of the network has their tasks.
    pub age_ms: u64,
    /// When a node's state takes more than this on its disk, the oldest batches may go, as above.
    pub bytes: u64,
    /// When it takes more than this they go whether or not an output has their tasks; it is then marked with a gap.
    pub hard_bytes: u64,
}

impl Retention {
    /// Whether nothing is ever forgotten.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// Fuel that the rules of one project may take in a second where the genesis says nothing: at most a sixtieth of a core on
/// each node, so that three nodes on two cores lose less than a twentieth to one project that takes all it can.
pub const RULES_FUEL_PER_SECOND: u64 = 500_000;
/// The least that a genesis may give, where it does not give 0.
pub const RULES_FUEL_PER_SECOND_MIN: u64 = 1_000;
/// The most that a genesis may give.
pub const RULES_FUEL_PER_SECOND_MAX: u64 = 1_000_000_000;

/// What `apply` may depend on. Changing any of it is a change of the network, never of a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkParams {
    /// Take messages without a signature; the ingress node vouches for them.
    pub allow_unsigned: bool,
    /// Take messages for projects that nobody registered, of any device where `default_project` does not say which. For
    /// test networks.
    pub allow_unknown_projects: bool,
    /// Show every project's payloads to anyone. For test networks.
    pub public_payloads: bool,
    /// Largest `data` of a message.
    pub message_bytes_max: u64,
    /// Most groups that are open at a time; the oldest is closed early when there would be one more.
    pub open_groups_max: u64,
    /// Number of the first task, so that an existing reader's cursor can be continued.
    pub first_task_number: TaskNumber,
    /// What is kept of the past.
    #[serde(skip_serializing_if = "Retention::is_everything")]
    pub retention: Retention,
    /// Settings of projects that have none of their own.
    pub default_project: ProjectSettings,
    /// Registered projects.
    pub projects: BTreeMap<ProjectId, ProjectSettings>,
    /// Who may order what for a project: the addresses of the owners' keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub owners: BTreeMap<ProjectId, Address>,
    /// Where devices and their permissions come from; their projects' owners where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainSource>,
    /// Fuel that the rules of one project may take in a second of batch time; [`RULES_FUEL_PER_SECOND`] where nothing is
    /// said. With 0 no project can have rules, so that programs that were built without them can take part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules_fuel_per_second: Option<u64>,
}

impl Default for NetworkParams {
    fn default() -> Self {
        Self {
            allow_unsigned: false,
            allow_unknown_projects: false,
            public_payloads: false,
            message_bytes_max: 64 << 10,
            open_groups_max: 65_536,
            first_task_number: TaskNumber(1),
            retention: Retention::default(),
            default_project: ProjectSettings::default(),
            projects: BTreeMap::new(),
            owners: BTreeMap::new(),
            chain: None,
            rules_fuel_per_second: None,
        }
    }
}

impl NetworkParams {
    /// Fuel that the rules of one project may take in a second of batch time.
    pub fn rules_fuel_per_second(&self) -> u64 {
        self.rules_fuel_per_second.unwrap_or(RULES_FUEL_PER_SECOND)
    }

    /// Whether owners of projects may set rules.
    pub fn allows_rules(&self) -> bool {
        self.rules_fuel_per_second() > 0
    }

    /// The longest retry window in which retention by age leaves everything; `None` where it forgets nothing. One that is
    /// [`RETRY_WINDOW_FOR_EVER_MS`] promises no time, so it goes with any retention.
    pub fn retry_window_ms_max(&self) -> Option<u64> {
        let age_ms = Some(self.retention.age_ms).filter(|age_ms| *age_ms > 0);
        age_ms.map(|age_ms| age_ms.saturating_sub(RETRY_MARGIN_MS + AGE_MS_MAX))
    }

    /// Whether retention by age leaves everything that such a retry window needs.
    pub fn keeps_window(&self, retry_window_ms: u64) -> bool {
        retry_window_ms == RETRY_WINDOW_FOR_EVER_MS
            || self.retry_window_ms_max().is_none_or(|max| retry_window_ms <= max)
    }

    /// The settings that hold for `project`; `None` where it is unknown and unknown ones are refused.
    pub fn project(&self, project: ProjectId) -> Option<&ProjectSettings> {
        match self.projects.get(&project) {
            Some(settings) => Some(settings),
            None if self.allow_unknown_projects => Some(&self.default_project),
            None => None,
        }
    }

    /// Whether anyone may see the payloads of `project`.
    pub fn shows_payloads(&self, project: ProjectId) -> bool {
        self.public_payloads || self.project(project).is_some_and(|p| p.public)
    }
}

/// The file that all members of a network hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// [`GENESIS_VERSION`] when it was made.
    pub version: u32,
    /// [`FORMAT`] of the program that made it.
    #[serde(default)]
    pub format: u32,
    /// The network's name: 1 to 64 of `a-z 0-9 - _ .`
    pub network: String,
    /// A word to whoever opens the file, for example that this is a test network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// First members, all voters. A member's node id is its place here, from 1.
    pub members: Vec<Member>,
    /// Parameters.
    pub params: NetworkParams,
}

/// What a genesis says of the program that made it.
#[derive(Deserialize)]
struct MadeBy {
    version: u32,
    #[serde(default)]
    format: u32,
}

impl MadeBy {
    fn check(&self) -> Result<(), GenesisError> {
        if self.format != FORMAT {
            return Err(GenesisError::Format(self.format));
        }
        if self.version > GENESIS_VERSION {
            return Err(GenesisError::Newer(self.version));
        }
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

impl Genesis {
    /// Makes a genesis. Members are put in the order of their public keys, so that operators who each run this
    /// over the same parts get the same file.
    pub fn new(network: &str, mut members: Vec<Member>, params: NetworkParams) -> Result<Self, GenesisError> {
        for member in &mut members {
            member.public_key = format!("0x{}", hex::encode(member.key()?.compressed()));
        }
        members.sort_by(|a, b| a.public_key.cmp(&b.public_key));
        let genesis = Self {
            version: GENESIS_VERSION,
            format: FORMAT,
            network: network.to_owned(),
            note: String::new(),
            members,
            params,
        };
        genesis.check()?;
        Ok(genesis)
    }

    /// Reads and checks a file's text.
    pub fn parse(text: &str) -> Result<Self, GenesisError> {
        let made_by: MadeBy = serde_json::from_str(text)?;
        // Before anything else: what another format has beside it need not be readable here.
        made_by.check()?;
        let genesis: Self = serde_json::from_str(text)?;
        genesis.check()?;
        Ok(genesis)
    }

    fn check(&self) -> Result<(), GenesisError> {
        let invalid = |reason: String| Err(GenesisError::Invalid(reason));
        MadeBy { version: self.version, format: self.format }.check()?;
        if !is_name(&self.network) {
            return invalid("a network's name has 1 to 64 characters of a-z, 0-9, '-', '_' and '.'".into());
        }
        if self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            return invalid(format!("a network has 1 to {MEMBERS_MAX} members at genesis"));
        }
        for (i, member) in self.members.iter().enumerate() {
            member.check()?;
            let key = member.key()?;
            for other in &self.members[..i] {
                if other.name == member.name || other.key()? == key || other.incarnation == member.incarnation {
                    return invalid(format!("members {} and {} share a name, key or store", other.name, member.name));
                }
            }
        }
        let params = &self.params;
        for settings in params.projects.values().chain([&params.default_project]) {
            settings.check()?;
        }
        if let Some(project) = params.owners.keys().find(|project| !params.projects.contains_key(project)) {
            return invalid(format!("owners names project {project}, which is not among the projects"));
        }
        if params.chain.as_ref().is_some_and(|chain| chain.attestations == 0) {
            return invalid("chain: attestations must be at least 1".into());
        }
        let retention = &params.retention;
        if retention.hard_bytes > 0 && retention.hard_bytes < retention.bytes.max(RETENTION_BYTES_MIN) {
            return invalid(format!(
                "retention: hard_bytes must be at least bytes, and at least {RETENTION_BYTES_MIN}"
            ));
        }
        if retention.bytes > 0 && retention.bytes < RETENTION_BYTES_MIN {
            return invalid(format!("retention: bytes must be at least {RETENTION_BYTES_MIN}"));
        }
        let windows_ms = params.projects.values().chain([&params.default_project]).map(|p| p.retry_window_ms);
        if let Some(longest_ms) = windows_ms.filter(|window_ms| !params.keeps_window(*window_ms)).max() {
            let late_ms = RETRY_MARGIN_MS + AGE_MS_MAX;
            return invalid(format!(
                "retention: age_ms must be at least {}: the longest retry_window_ms of a project that is not \
                 {RETRY_WINDOW_FOR_EVER_MS} (for as long as messages are kept), and {late_ms} for repeats that are late",
                longest_ms.saturating_add(late_ms)
            ));
        }
        if params.message_bytes_max == 0 || params.open_groups_max == 0 || params.first_task_number.0 == 0 {
            return invalid("message_bytes_max, open_groups_max and first_task_number must be at least 1".into());
        }
        let fuel = RULES_FUEL_PER_SECOND_MIN..=RULES_FUEL_PER_SECOND_MAX;
        if params.allows_rules() && !fuel.contains(&params.rules_fuel_per_second()) {
            return invalid(format!(
                "rules_fuel_per_second must be {} to {}, or 0 for a network without rules of projects",
                fuel.start(),
                fuel.end()
            ));
        }
        if params.message_bytes_max > MESSAGE_BYTES_MAX {
            return invalid(format!("message_bytes_max must be at most {MESSAGE_BYTES_MAX}"));
        }
        Ok(())
    }

    /// The file's text: pretty JSON, members in order, with a line feed at the end.
    pub fn to_text(&self) -> Result<String, GenesisError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The network's id: keccak256 over the compact JSON of the genesis as this program writes it, so that white
    /// space in a copied file does not matter.
    pub fn id(&self) -> Result<NetworkId, GenesisError> {
        Ok(NetworkId(keccak256(&[GENESIS_DOMAIN, &serde_json::to_vec(self)?])))
    }

    /// Members with their node ids.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        (1..).map(NodeId).zip(&self.members)
    }

    /// The member with this key.
    pub fn member_of(&self, key: &PublicKey) -> Option<(NodeId, &Member)> {
        self.nodes().find(|(_, member)| member.key().is_ok_and(|k| k == *key))
    }

    /// The first member set: all of them voters.
    pub fn first_set(&self) -> Result<MemberSet, GenesisError> {
        let member = |(node, m): (NodeId, &Member)| Ok(SetMember { node, address: m.key()?.address(), voter: true });
        Ok(MemberSet(self.nodes().map(member).collect::<Result<_, GenesisError>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SigningKey;

    fn member(n: u8) -> Member {
        Member {
            name: format!("node-{n}"),
            public_key: hex::encode(SigningKey::from_bytes([n; 32]).unwrap().public().compressed()),
            incarnation: Incarnation([n; 16]),
            p2p: format!("/ip4/127.0.0.1/tcp/{}", 9100 + u16::from(n)),
            http: format!("http://127.0.0.1:{}", 9000 + u16::from(n)),
        }
    }

    #[test]
    fn operators_get_the_same_genesis_in_whatever_order_they_name_the_members() {
        let a = Genesis::new("net", vec![member(1), member(2), member(3)], NetworkParams::default()).unwrap();
        let b = Genesis::new("net", vec![member(3), member(1), member(2)], NetworkParams::default()).unwrap();
        assert_eq!(a.to_text().unwrap(), b.to_text().unwrap());
        assert_eq!(a.id().unwrap(), Genesis::parse(&a.to_text().unwrap()).unwrap().id().unwrap());
    }

    #[test]
    fn any_changed_parameter_or_member_is_another_network() {
        let base = Genesis::new("net", vec![member(1)], NetworkParams::default()).unwrap();
        let mut other = base.clone();
        other.params.default_project.retry_window_ms += 1;
        assert_ne!(base.id().unwrap(), other.id().unwrap());
        other = base.clone();
        other.members[0].incarnation = Incarnation([9; 16]);
        assert_ne!(base.id().unwrap(), other.id().unwrap());
    }

    #[test]
    fn a_network_of_another_format_is_refused_whatever_else_it_says() {
        let text = Genesis::new("net", vec![member(1)], NetworkParams::default()).unwrap().to_text().unwrap();
        let ours = format!("\"format\": {FORMAT},");
        assert!(text.contains(&ours));
        let newer = text.replace(&ours, &format!("\"format\": {}, \"unheard\": 1,", FORMAT + 1));
        assert!(matches!(Genesis::parse(&newer), Err(GenesisError::Format(found)) if found == FORMAT + 1));
        // Programs before there was the number wrote none.
        let older = text.replace(&ours, "").replace("\"version\": 1", "\"version\": 2");
        let refused = Genesis::parse(&older).unwrap_err();
        assert!(matches!(refused, GenesisError::Format(0)));
        assert!(refused.to_string().contains("form the network anew"), "{refused}");
    }

    #[test]
    fn fuel_of_rules_is_0_or_within_its_bounds() {
        for (fuel, is_good, allows_rules) in [
            (None, true, true),
            (Some(0), true, false),
            (Some(1), false, true),
            (Some(RULES_FUEL_PER_SECOND_MIN - 1), false, true),
            (Some(RULES_FUEL_PER_SECOND_MIN), true, true),
            (Some(RULES_FUEL_PER_SECOND_MAX), true, true),
            (Some(RULES_FUEL_PER_SECOND_MAX + 1), false, true),
        ] {
            let params = NetworkParams { rules_fuel_per_second: fuel, ..NetworkParams::default() };
            assert_eq!(params.allows_rules(), allows_rules, "{fuel:?}");
            let genesis = Genesis::new("net", vec![member(1)], params);
            assert_eq!(genesis.is_ok(), is_good, "{fuel:?}");
            // 0 is written down: nothing said means the default.
            let read = genesis.ok().map(|genesis| Genesis::parse(&genesis.to_text().unwrap()).unwrap());
            assert!(read.is_none_or(|read| read.params.rules_fuel_per_second == fuel), "{fuel:?}");
        }
    }

    #[test]
    fn retention_by_age_leaves_every_retry_window_whole_that_promises_a_time() {
        let late_ms = RETRY_MARGIN_MS + AGE_MS_MAX;
        for (age_ms, window_ms, is_good) in [
            (0, RETRY_WINDOW_FOR_EVER_MS - 1, true),
            (0, RETRY_WINDOW_FOR_EVER_MS, true),
            (10_000 + late_ms, 10_000, true),
            (10_000 + late_ms - 1, 10_000, false),
            (10_000 + late_ms, 10_001, false),
            (u64::MAX, RETRY_WINDOW_FOR_EVER_MS - 1, false),
            (10_000 + late_ms, RETRY_WINDOW_FOR_EVER_MS - 1, false),
            (10_000 + late_ms, RETRY_WINDOW_FOR_EVER_MS, true),
            // The default project's own window of 10 s.
            (1, RETRY_WINDOW_FOR_EVER_MS, false),
        ] {
            let retention = Retention { age_ms, ..Retention::default() };
            let settings = ProjectSettings { retry_window_ms: window_ms, ..ProjectSettings::default() };
            let params =
                NetworkParams { retention, projects: [(ProjectId(7), settings)].into(), ..NetworkParams::default() };
            let genesis = Genesis::new("net", vec![member(1)], params);
            assert_eq!(genesis.is_ok(), is_good, "{age_ms} {window_ms}: {genesis:?}");
        }
        let by_bytes = Retention { bytes: RETENTION_BYTES_MIN, ..Retention::default() };
        let default_project =
            ProjectSettings { retry_window_ms: RETRY_WINDOW_FOR_EVER_MS, ..ProjectSettings::default() };
        let params = NetworkParams { retention: by_bytes, default_project, ..NetworkParams::default() };
        assert!(Genesis::new("net", vec![member(1)], params).is_ok());
    }

    #[test]
    fn members_must_differ_and_be_well_formed() {
        let params = NetworkParams::default;
        assert!(Genesis::new("net", vec![], params()).is_err());
        assert!(Genesis::new("Net!", vec![member(1)], params()).is_err());
        assert!(Genesis::new("net", vec![member(1), member(1)], params()).is_err());
        let mut bad = member(1);
        bad.public_key = "02".into();
        assert!(Genesis::new("net", vec![bad], params()).is_err());
        let text = Genesis::new("net", vec![member(1)], params()).unwrap().to_text().unwrap();
        assert!(Genesis::parse(&text.replace("\"params\"", "\"parms\"")).is_err());
        assert!(Genesis::parse(&text.replace("\"version\": 1", "\"version\": 3")).is_err());
    }
}
