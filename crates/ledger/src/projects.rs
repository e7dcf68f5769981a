//! Projects as the log has them: those of the genesis, those that were registered since, and what their owners
//! ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_rules::Rules;
use lockstep_types::registry::{settings_from_proto, settings_to_proto};
use lockstep_types::{
    Address, DecodeError, DevicePolicy, Digest, Hash32, Height, NetworkParams, ProjectId, ProjectSettings, proto,
};
use prost::Message as _;

use crate::rules::{self, RulesFrom};

/// Version of the stored record.
pub const PROJECT_VERSION: u32 = 1;
/// Most projects that can be registered after the genesis.
pub const PROJECTS_MAX: usize = 65_536;

/// One project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Whose orders count; nobody's where there is no owner.
    pub owner: Option<Address>,
    /// Orders that were carried out so far.
    pub orders: u64,
    /// How it is packed, and who may submit and read.
    pub settings: ProjectSettings,
    /// Its rules, ascending by the batch from which they hold.
    pub rules: Vec<RulesFrom>,
}

impl Project {
    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        proto::ProjectRecord {
            version: PROJECT_VERSION,
            owner: self.owner.map(|owner| Bytes::copy_from_slice(&owner.0)).unwrap_or_default(),
            orders: self.orders,
            settings: Some(settings_to_proto(&self.settings)),
            rules: self.rules.iter().map(|rules| rules.to_proto()).collect(),
        }
        .encode_to_vec()
    }

    /// Reads a stored record.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("project", reason);
        let record = proto::ProjectRecord::decode(record).map_err(|e| bad(&e.to_string()))?;
        if record.version > PROJECT_VERSION {
            return Err(DecodeError::Newer { what: "project", found: record.version, known: PROJECT_VERSION });
        }
        let owner = (!record.owner.is_empty()).then(|| Address::try_from(&record.owner[..]));
        Ok(Self {
            owner: owner.transpose().map_err(|e| bad(&e.to_string()))?,
            orders: record.orders,
            settings: settings_from_proto(record.settings.ok_or_else(|| bad("no settings"))?)?,
            rules: record.rules.into_iter().map(RulesFrom::from_proto).collect::<Result<_, _>>()?,
        })
    }
}

/// All projects. Clones share what they hold.
#[derive(Debug, Clone)]
pub struct Projects {
    params: Arc<NetworkParams>,
    known: Arc<BTreeMap<ProjectId, Project>>,
    /// Rules that can be applied, by the hash of their bundle.
    rules: Arc<BTreeMap<Hash32, Arc<Rules>>>,
    /// Projects whose rules change with a batch, or would have.
    changes: Arc<BTreeMap<Height, BTreeSet<ProjectId>>>,
}

impl Projects {
    /// The projects of the genesis, and what is stored of them and of others.
    pub fn new(params: &NetworkParams, stored: impl IntoIterator<Item = (ProjectId, Project)>) -> Self {
        let first = |(id, settings): (&ProjectId, &ProjectSettings)| {
            (
                *id,
                Project {
                    owner: params.owners.get(id).copied(),
                    orders: 0,
                    settings: settings.clone(),
                    rules: Vec::new(),
                },
            )
        };
        let mut known: BTreeMap<_, _> = params.projects.iter().map(first).collect();
        known.extend(stored);
        let mut params = params.clone();
        if params.allow_unknown_projects {
            // Nobody owns an unknown project, so nobody could let a device submit to it.
            params.default_project.devices.get_or_insert(DevicePolicy::Any);
        }
        let mut projects =
            Self { params: Arc::new(params), known: Arc::default(), rules: Arc::default(), changes: Arc::default() };
        for (id, project) in known {
            projects.set(id, project);
        }
        projects
    }

    /// The rules that hold for a project's messages in a batch; `None` where there are none.
    pub fn rules_at(&self, id: ProjectId, height: Height) -> Option<&Arc<Rules>> {
        let project = self.known.get(&id).filter(|project| !project.rules.is_empty())?;
        self.rules.get(&rules::at(&project.rules, height)?)
    }

    /// From which batch on those rules of a project hold that hold in a batch.
    pub fn rules_from(&self, id: ProjectId, height: Height) -> Option<Height> {
        rules::newest_at(&self.known.get(&id)?.rules, height).map(|rules| rules.from)
    }

    /// Whether any project has rules.
    pub fn have_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Remembers rules that can be applied.
    pub(crate) fn keep_rules(&mut self, hash: Hash32, compiled: Arc<Rules>) {
        Arc::make_mut(&mut self.rules).insert(hash, compiled);
    }

    /// Forgets rules that hold for no batch from this one on; their hashes.
    pub(crate) fn forget_rules(&mut self, from: Height) -> Vec<Hash32> {
        let can_hold = |project: &Project| {
            let holds = rules::at(&project.rules, from);
            let later = project.rules.iter().filter(|rules| rules.from > from).filter_map(|rules| rules.hash);
            holds.into_iter().chain(later).collect::<Vec<_>>()
        };
        let used: BTreeSet<Hash32> = self.known.values().flat_map(can_hold).collect();
        let used = |hash: &Hash32| used.contains(hash);
        let unused: Vec<Hash32> = self.rules.keys().filter(|hash| !used(hash)).copied().collect();
        for hash in &unused {
            Arc::make_mut(&mut self.rules).remove(hash);
        }
        unused
    }

    /// The network's parameters.
    pub fn params(&self) -> &NetworkParams {
        &self.params
    }

    /// A registered project.
    pub fn get(&self, id: ProjectId) -> Option<&Project> {
        self.known.get(&id)
    }

    /// All registered projects, by id.
    pub fn all(&self) -> impl Iterator<Item = (ProjectId, &Project)> {
        self.known.iter().map(|(id, project)| (*id, project))
    }

    /// How many are registered.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// The settings that hold for a project; `None` where it is unknown and unknown ones are refused.
    pub fn settings(&self, id: ProjectId) -> Option<&ProjectSettings> {
        match self.known.get(&id) {
            Some(project) => Some(&project.settings),
            None if self.params.allow_unknown_projects => Some(&self.params.default_project),
            None => None,
        }
    }

    /// Whether anyone may see the payloads of a project.
    pub fn shows_payloads(&self, id: ProjectId) -> bool {
        self.params.public_payloads || self.settings(id).is_some_and(|settings| settings.public)
    }

    /// Whether the payloads of a project may be seen by whoever shows the reader token with this hash, or none.
    pub fn may_read(&self, id: ProjectId, token: Option<&Digest>) -> bool {
        let opens = |settings: &ProjectSettings| token.is_some_and(|token| settings.readers.contains(token));
        self.shows_payloads(id) || self.settings(id).is_some_and(opens)
    }

    /// Whether both hold the same state, by where it lies: cheap, and right after every change.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.known, &other.known)
    }

    /// Projects whose rules are others from this batch on.
    pub(crate) fn changing_at(&self, height: Height) -> Vec<ProjectId> {
        let changes = |id: &&ProjectId| {
            let rules = self.known.get(id).map_or(&[][..], |project| &project.rules);
            let before = Height(height.0.saturating_sub(1));
            rules::at(rules, height) != rules::at(rules, before)
        };
        self.changes.get(&height).into_iter().flatten().filter(changes).copied().collect()
    }

    /// What was to change up to a batch has changed.
    pub(crate) fn changed(&mut self, height: Height) {
        if self.changes.first_key_value().is_some_and(|(first, _)| *first <= height) {
            let changes = Arc::make_mut(&mut self.changes);
            *changes = changes.split_off(&height.next());
        }
    }

    pub(crate) fn set(&mut self, id: ProjectId, project: Project) {
        for rules in &project.rules {
            Arc::make_mut(&mut self.changes).entry(rules.from).or_default().insert(id);
        }
        Arc::make_mut(&mut self.known).insert(id, project);
    }
}
