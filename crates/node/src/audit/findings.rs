//! What an audit finds, and how a stored task is held against the chain's. No input or output.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_outputs::{Damaged, FinalTask, Layout};
use lockstep_types::{ProjectId, TaskNumber};
use serde::{Deserialize, Serialize};

/// Findings that are listed; all are counted.
pub const FINDINGS_LISTED_MAX: usize = 100;
/// Messages whose payloads are named in one finding.
const PAYLOADS_NAMED_MAX: usize = 8;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The chain has the task and the store has not.
    Missing,
    /// The store has it, and says something else.
    Different,
    /// The store has what is not for it.
    Surplus,
    /// The store gives tasks in another order than that of their numbers.
    OutOfOrder,
    /// In the place of the task is what no Lockstep has written.
    Damaged,
    /// The store has what belongs to no task.
    Stray,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Missing, Self::Different, Self::Surplus, Self::OutOfOrder, Self::Damaged, Self::Stray];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Different => "different",
            Self::Surplus => "surplus",
            Self::OutOfOrder => "out of order",
            Self::Damaged => "damaged",
            Self::Stray => "stray",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// First and last task, where it is about tasks.
    pub tasks: Option<(TaskNumber, TaskNumber)>,
    /// What exactly. Never a payload.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.tasks {
            Some((first, last)) if first == last => write!(f, "task {first}: {}", self.kind.words())?,
            Some((first, last)) => write!(f, "tasks {first} to {last}: {}", self.kind.words())?,
            None => f.write_str(self.kind.words())?,
        }
        if self.what.is_empty() { Ok(()) } else { write!(f, ": {}", self.what) }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// How many of each kind there are: tasks, or rows or objects of no task.
    pub counts: BTreeMap<FindingKind, u64>,
    /// The first [`FINDINGS_LISTED_MAX`].
    pub listed: Vec<Finding>,
}

impl Findings {
    /// How many there are of a kind.
    pub fn count(&self, kind: FindingKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// How many there are in all.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Takes one in. Missing tasks in a row are one in the list.
    pub fn add(&mut self, kind: FindingKind, tasks: Option<(TaskNumber, TaskNumber)>, what: impl Into<String>) {
        let what = what.into();
        self.add_unlisted(kind, tasks.map_or(1, |(first, last)| (last.0 + 1).saturating_sub(first.0)));
        if let (Some((first, last)), Some(Finding { kind: of, tasks: Some((_, end)), what: said })) =
            (tasks, self.listed.last_mut())
            && *of == kind
            && *said == what
            && end.next() == first
        {
            *end = last;
            return;
        }
        if self.listed.len() < FINDINGS_LISTED_MAX {
            self.listed.push(Finding { kind, tasks, what });
        }
    }

    /// Counts more of a kind than can be listed.
    pub fn add_unlisted(&mut self, kind: FindingKind, count: u64) {
        if count > 0 {
            *self.counts.entry(kind).or_default() += count;
        }
    }

    /// Takes in what stands in the place of tasks.
    pub fn add_damaged(&mut self, damaged: &Damaged) {
        self.add(FindingKind::Damaged, Some((damaged.first, damaged.last)), damaged.reason.clone());
    }
}

/// Tasks that a store has set aside.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// By number.
    pub tasks: BTreeSet<TaskNumber>,
    /// Projects that halt, with the number from which on their tasks wait.
    pub halts: Vec<(ProjectId, TaskNumber)>,
}

impl Refused {
    /// Whether this task is not in the store because one was refused.
    pub fn explains(&self, number: TaskNumber, project: ProjectId) -> bool {
        self.tasks.contains(&number) || self.halts.iter().any(|(halted, from)| *halted == project && *from <= number)
    }
}

/// In what a stored task is not the one that the publisher would make of the chain; empty where it is.
pub(super) fn differences(stored: &FinalTask, expected: &FinalTask, layout: Layout) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = |name: &str, same: bool| {
        if !same {
            fields.push(name.to_owned());
        }
    };
    field("id", stored.id == expected.id);
    field("project", stored.project_id == expected.project_id);
    field("project version", stored.project_version == expected.project_version);
    field("device", stored.device == expected.device);
    field("time", stored.time_ms == expected.time_ms);
    let pairs = || stored.messages.iter().zip(&expected.messages);
    let sequences = stored.messages.len() == expected.messages.len() && pairs().all(|(s, e)| s.sequence == e.sequence);
    field("messages", sequences);
    // Tables of that layout have no column for them.
    let has_ids = stored.origin.is_some() || layout != Layout::Apinode;
    field("message ids", !sequences || !has_ids || pairs().all(|(s, e)| s.id == e.id));
    field("signature", stored.signature == expected.signature);
    match (&stored.origin, &expected.origin) {
        (Some(stored), Some(expected)) => {
            field("messages' evidence", stored.messages == expected.messages);
            let anchored = stored.path == expected.path && stored.part.anchor == expected.part.anchor;
            field("way to the genesis", anchored);
        }
        (None, None) => {}
        _ => field("way to the genesis", false),
    }
    if sequences {
        let other = pairs().filter(|(s, e)| s.data != e.data).take(PAYLOADS_NAMED_MAX);
        fields.extend(other.map(|(s, _)| format!("payload of message {}", s.sequence)));
    }
    fields
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lockstep_outputs::FinalMessage;
    use lockstep_types::{Address, MessageId, Sequence, Signature, TaskId, TimeMs};

    use super::*;

    fn task() -> FinalTask {
        let message = |n: u64| FinalMessage { sequence: Sequence(n), id: MessageId([4; 32]), data: Bytes::from("a") };
        FinalTask {
            number: TaskNumber(5),
            id: TaskId([3; 32]),
            project_id: ProjectId(7),
            project_version: "v1".to_owned(),
            device: Address([2; 20]),
            time_ms: TimeMs(9),
            messages: vec![message(1), message(2)],
            signature: Signature([3; 65]),
            origin: None,
        }
    }

    #[test]
    fn each_difference_is_named() {
        type Change = fn(&mut FinalTask);
        let changes: [(&str, Change); 9] = [
            ("id", |t| t.id = TaskId([9; 32])),
            ("project", |t| t.project_id = ProjectId(8)),
            ("project version", |t| t.project_version.push('2')),
            ("device", |t| t.device = Address::ZERO),
            ("time", |t| t.time_ms = TimeMs(8)),
            ("messages", |t| drop(t.messages.pop())),
            ("message ids", |t| t.messages[1].id = MessageId::ZERO),
            ("signature", |t| t.signature = Signature([9; 65])),
            ("payload of message 2", |t| t.messages[1].data = Bytes::from("b")),
        ];
        assert!(differences(&task(), &task(), Layout::Sprout).is_empty());
        for (name, change) in changes {
            let mut stored = task();
            change(&mut stored);
            assert_eq!(differences(&stored, &task(), Layout::Sprout), [name]);
        }
        let mut without_ids = task();
        without_ids.messages.iter_mut().for_each(|message| message.id = MessageId::ZERO);
        assert!(differences(&without_ids, &task(), Layout::Apinode).is_empty());
    }

    #[test]
    fn all_are_counted_the_first_are_listed_and_neighbours_are_one() {
        let mut findings = Findings::default();
        let at = |n: u64| Some((TaskNumber(n), TaskNumber(n)));
        for n in 1..=300 {
            findings.add(FindingKind::Missing, at(n), "");
        }
        findings.add(FindingKind::Missing, at(302), "");
        for n in 0..300 {
            findings.add(FindingKind::Stray, None, format!("row {n}"));
        }
        assert_eq!((findings.count(FindingKind::Missing), findings.count(FindingKind::Stray)), (301, 300));
        assert_eq!((findings.total(), findings.listed.len()), (601, FINDINGS_LISTED_MAX));
        let said: Vec<String> = findings.listed[..3].iter().map(ToString::to_string).collect();
        assert_eq!(said, ["tasks 1 to 300: missing", "task 302: missing", "stray: row 0"]);
        let shown = serde_json::to_value(&findings).unwrap();
        assert_eq!(shown["counts"], serde_json::json!({"missing": 301, "stray": 300}));
    }

    #[test]
    fn a_refused_task_explains_itself_and_a_halted_project_what_waits() {
        let refused = Refused { tasks: [TaskNumber(4)].into(), halts: vec![(ProjectId(7), TaskNumber(9))] };
        let explained = |number: u64, project: u64| refused.explains(TaskNumber(number), ProjectId(project));
        assert!(explained(4, 1) && explained(9, 7) && explained(10, 7));
        assert!(!explained(5, 1) && !explained(8, 7) && !explained(10, 8));
    }
}
