//! Rules of projects in the state: which hold from which batch on, what they took and refused, and what they may cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_rules::{Bundle, Refusal, Rules, RulesError};
use lockstep_types::{DecodeError, Hash32, Height, NetworkParams, Sequence, TimeMs, proto};
use prost::Message as _;

/// Version of the stored [`RulesState`].
pub const RULES_STATE_VERSION: u32 = 1;
/// Rules of a project that are remembered, those that will hold included; older ones are forgotten.
pub const RULES_KEPT_MAX: usize = 32;
/// Reasons that are counted by name; beyond them there is [`OTHER_REASONS`].
pub const REASONS_MAX: usize = 64;
/// See [`REASONS_MAX`].
pub const OTHER_REASONS: &str = "other";

/// Rules from a batch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RulesFrom {
    /// The first batch that they hold for.
    pub from: Height,
    /// Hash of their bundle; `None`: no rules.
    pub hash: Option<Hash32>,
}

impl RulesFrom {
    /// The wire form.
    pub fn to_proto(self) -> proto::RulesFrom {
        let hash = self.hash.map(|hash| Bytes::copy_from_slice(&hash)).unwrap_or_default();
        proto::RulesFrom { height: self.from.0, hash }
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// It is damaged.
    pub fn from_proto(rules: proto::RulesFrom) -> Result<Self, DecodeError> {
        let hash = (!rules.hash.is_empty()).then(|| Hash32::try_from(&rules.hash[..]));
        let hash = hash.transpose().map_err(|_| DecodeError::malformed("rules of a project", "not a hash"))?;
        Ok(Self { from: Height(rules.height), hash })
    }
}

/// Which of a project's rules hold for a batch.
pub(crate) fn at(rules: &[RulesFrom], height: Height) -> Option<Hash32> {
    newest_at(rules, height)?.hash
}

/// The newest that were set for a batch or one before it.
pub(crate) fn newest_at(rules: &[RulesFrom], height: Height) -> Option<&RulesFrom> {
    rules.iter().rev().find(|rules| rules.from <= height)
}

/// Adds rules to those of a project, instead of any that would hold from the same batch or a later one. `newest` is the
/// newest batch; what holds for it is not forgotten. `false`: there are too many that will hold later.
pub(crate) fn add(rules: &mut Vec<RulesFrom>, new: RulesFrom, newest: Height) -> bool {
    let mut added: Vec<_> = rules.iter().filter(|known| known.from < new.from).copied().collect();
    added.push(new);
    if added.len() > RULES_KEPT_MAX {
        if added.get(1).is_some_and(|second| second.from > newest) {
            return false;
        }
        added.remove(0);
    }
    *rules = added;
    true
}

/// A program without rules must not take part in a network whose owners may set some: it could not do what the log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "projects of this network may have rules (rules_fuel_per_second in its genesis is {0}, not 0), and this program was built without them: use one that was built with the feature rules"
)]
pub struct RulesNeeded(u64);

/// Whether a program may apply the log of a network with these parameters; `has_rules` says how it was built.
///
/// # Errors
/// If what the log says could be more than it knows how to do.
pub fn check_rules(params: &NetworkParams, has_rules: bool) -> Result<(), RulesNeeded> {
    if has_rules || !params.allows_rules() { Ok(()) } else { Err(RulesNeeded(params.rules_fuel_per_second())) }
}

/// Makes rules of an encoded bundle.
///
/// # Errors
/// Whatever cannot be used. Of a stored bundle: it is damaged, or this program is older than what took it.
pub fn compile_rules(encoded: &Bytes) -> Result<(Hash32, Arc<Rules>), RulesError> {
    let bundle = Bundle::decode(encoded.clone())?;
    Ok((bundle.hash(), Arc::new(Rules::compile(&bundle)?)))
}

/// How far a device's own time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// From which batch on the rules hold whose windows these are. Others have other windows, or another idea of time.
    pub rules_from: Height,
    /// Number of the latest window that a message of the device was in.
    pub window: i64,
}

/// The last message of a device that a project's rules took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastTaken {
    /// Its data.
    pub data: Bytes,
    /// Time of its batch.
    pub time_ms: TimeMs,
    /// Its place.
    pub sequence: Sequence,
    /// How far the device's own time has come, where the rules have windows of it.
    pub reached: Option<Reached>,
}

/// First byte of the stored time, where [`LastTaken::reached`] follows it: no time is as late as that.
const WITH_REACHED: u8 = 1;

impl LastTaken {
    /// The stored record: sequence and time, big endian, how far the device's time has come, and the data. The sequence comes
    /// first, for the filter that drops old records.
    pub fn encode(&self) -> Vec<u8> {
        let mut time = self.time_ms.0.to_be_bytes();
        time[0] = u8::from(self.reached.is_some()) * WITH_REACHED;
        let reached = self.reached.map(|reached| [reached.rules_from.0.to_be_bytes(), reached.window.to_be_bytes()]);
        let reached = reached.as_ref().map(|reached| reached.as_flattened()).unwrap_or_default();
        [&self.sequence.0.to_be_bytes()[..], &time, reached, &self.data].concat()
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// It is damaged.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let number = |at: usize| record.get(at..).and_then(|rest| rest.first_chunk::<8>()).copied();
        let short = || DecodeError::malformed("last message", "too short");
        let sequence = u64::from_be_bytes(number(0).ok_or_else(short)?);
        let mut time = number(8).ok_or_else(short)?;
        let has_reached = std::mem::take(&mut time[0]) == WITH_REACHED;
        let reached = if has_reached {
            let (from, window) = number(16).zip(number(24)).ok_or_else(short)?;
            Some(Reached { rules_from: Height(u64::from_be_bytes(from)), window: i64::from_be_bytes(window) })
        } else {
            None
        };
        let data = record.slice(if has_reached { 32 } else { 16 }..);
        Ok(Self { data, time_ms: TimeMs(u64::from_be_bytes(time)), sequence: Sequence(sequence), reached })
    }
}

/// Fuel that a project has, and as of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProjectFuel {
    left: i64,
    as_of: TimeMs,
}

impl Default for ProjectFuel {
    fn default() -> Self {
        Self { left: i64::MAX, as_of: TimeMs(0) }
    }
}

impl ProjectFuel {
    /// Whether anything may be spent, where a project may spend so much in a second. What it takes beyond that, its devices
    /// wait for, and nobody else. It can save up what comes in one second.
    pub fn has_any(&mut self, now: TimeMs, per_second: u64) -> bool {
        let per_second = i64::try_from(per_second).unwrap_or(i64::MAX);
        let passed = i64::try_from(now.0.saturating_sub(self.as_of.0)).unwrap_or(i64::MAX);
        self.left = self.left.saturating_add(passed.saturating_mul(per_second) / 1_000).min(per_second);
        self.as_of = self.as_of.max(now);
        self.left > 0
    }

    /// Spends, also more than there is: who owes waits.
    pub fn spend(&mut self, fuel: u64) {
        self.left = self.left.saturating_sub(i64::try_from(fuel).unwrap_or(i64::MAX));
    }
}

/// What the state keeps of a project that has or had rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesState {
    pub(crate) fuel: ProjectFuel,
    /// Messages that the rules took.
    pub taken: u64,
    /// Of these, flagged ones.
    pub flagged: u64,
    /// Of these, messages of windows that were passed.
    pub late: u64,
    /// Tasks that were made since the project had rules first.
    pub tasks: u64,
    /// Messages that they did not take, by stage and reason (`filter:test`).
    pub refused: BTreeMap<String, u64>,
}

impl RulesState {
    pub(crate) fn took(&mut self, is_flagged: bool, is_late: bool) {
        self.taken += 1;
        self.flagged += u64::from(is_flagged);
        self.late += u64::from(is_late);
    }

    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        let what = format!("{}:{}", refusal.stage, refusal.reason);
        let is_new = !self.refused.contains_key(&what) && self.refused.len() >= REASONS_MAX;
        *self.refused.entry(if is_new { OTHER_REASONS.to_owned() } else { what }).or_default() += 1;
    }

    /// The stored record.
    pub fn encode(&self) -> Vec<u8> {
        let tally = |(what, count): (&String, &u64)| proto::RulesTally { what: what.clone(), count: *count };
        proto::RulesState {
            version: RULES_STATE_VERSION,
            fuel: self.fuel.left,
            fuel_ms: self.fuel.as_of.0,
            taken: self.taken,
            flagged: self.flagged,
            late: self.late,
            tasks: self.tasks,
            refused: self.refused.iter().map(tally).collect(),
        }
        .encode_to_vec()
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// It is damaged, or of a newer program.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let what = "state of rules";
        let state = proto::RulesState::decode(record).map_err(|e| DecodeError::malformed(what, e))?;
        if state.version > RULES_STATE_VERSION {
            return Err(DecodeError::Newer { what, found: state.version, known: RULES_STATE_VERSION });
        }
        Ok(Self {
            fuel: ProjectFuel { left: state.fuel, as_of: TimeMs(state.fuel_ms) },
            taken: state.taken,
            flagged: state.flagged,
            late: state.late,
            tasks: state.tasks,
            refused: state.refused.into_iter().map(|tally| (tally.what, tally.count)).collect(),
        })
    }
}
