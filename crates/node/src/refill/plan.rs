//! Which backups are of this history, and which of them to read. No input or output.

use std::collections::BTreeSet;

use lockstep_types::{Epochs, NetworkId, TaskNumber};

use crate::backup::BackupManifest;
use crate::gaps::Range;

/// A backup that may have missing tasks.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub manifest: BackupManifest,
    /// The tasks that it may have and that are part of this history: from the first to before the second.
    pub tasks: (TaskNumber, TaskNumber),
}

/// The backups of this network whose epochs led to this one.
pub(super) fn candidates(manifests: Vec<BackupManifest>, network: &NetworkId, epochs: &Epochs) -> Vec<Candidate> {
    let is_ours =
        |manifest: &BackupManifest| manifest.network == *network && epochs.records().starts_with(&manifest.epochs);
    let candidate = |manifest: BackupManifest| {
        // What an earlier epoch ordered beyond the beginning of a later one was lost.
        let later = epochs.records().iter().filter(|record| record.epoch > manifest.epoch);
        let end = later.map(|record| record.next_task_number).min();
        let end = end.map_or(manifest.next_task_number, |end| end.min(manifest.next_task_number));
        Candidate { tasks: (manifest.oldest_task_number, end), manifest }
    };
    manifests.into_iter().filter(is_ours).map(candidate).collect()
}

/// The part of a range that a candidate may have.
pub(super) fn overlap((first, last): Range, (start, end): (TaskNumber, TaskNumber)) -> Option<Range> {
    let (first, last) = (first.max(start), last.min(TaskNumber(end.0.saturating_sub(1))));
    (first <= last && end.0 > 0).then_some((first, last))
}

/// The candidate with most of what is missing, and of equal ones the oldest: what was forgotten later is in it too.
pub(super) fn choose<'a>(
    candidates: &'a [Candidate],
    missing: &[Range],
    tried: &BTreeSet<String>,
) -> Option<&'a Candidate> {
    let has = |candidate: &Candidate| -> u64 {
        let parts = missing.iter().filter_map(|range| overlap(*range, candidate.tasks));
        parts.map(|(first, last)| last.0 - first.0 + 1).sum()
    };
    let untried = candidates.iter().filter(|candidate| !tried.contains(&candidate.manifest.name()));
    let mut best = None;
    for (tasks, candidate) in untried.map(|candidate| (has(candidate), candidate)).filter(|(tasks, _)| *tasks > 0) {
        if best.is_none_or(|(most, _)| tasks > most) {
            best = Some((tasks, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use lockstep_types::{
        BatchHash, Epoch, EpochMember, EpochReason, EpochRecord, Genesis, Height, Incarnation, Member, NetworkParams,
        NodeId, Sequence, SigningKey, TimeMs,
    };

    use super::*;

    fn member(n: u8) -> Member {
        Member {
            name: format!("node-{n}"),
            public_key: format!("0x{}", hex::encode(SigningKey::from_bytes([n; 32]).unwrap().public().compressed())),
            incarnation: Incarnation([n; 16]),
            p2p: "/ip4/127.0.0.1/tcp/1".into(),
            http: "http://127.0.0.1:1".into(),
        }
    }

    fn genesis() -> Genesis {
        Genesis::new("test", vec![member(1)], NetworkParams::default()).unwrap()
    }

    fn record(epoch: u64, next_task: u64) -> EpochRecord {
        EpochRecord {
            epoch: Epoch(epoch),
            parent_height: Height(next_task),
            parent_hash: BatchHash([7; 32]),
            next_sequence: Sequence(next_task),
            next_task_number: TaskNumber(next_task),
            members: vec![EpochMember::new(NodeId(epoch + 1), member(9))],
            reason: EpochReason::Restore,
            possible_loss: String::new(),
            time_ms: TimeMs(5),
        }
    }

    fn backup(epochs: &[EpochRecord], oldest: u64, next: u64) -> BackupManifest {
        BackupManifest {
            version: crate::backup::BACKUP_VERSION,
            network: genesis().id().unwrap(),
            epoch: Epoch(epochs.len() as u64),
            height: Height(next),
            hash: BatchHash([1; 32]),
            time_ms: TimeMs(0),
            next_sequence: Sequence(next),
            next_task_number: TaskNumber(next),
            oldest_task_number: TaskNumber(oldest),
            final_height: Height(next),
            made_ms: TimeMs(0),
            genesis: genesis(),
            epochs: epochs.to_vec(),
            files: Vec::new(),
        }
    }

    fn tasks(candidates: &[Candidate]) -> Vec<(u64, u64)> {
        candidates.iter().map(|candidate| (candidate.tasks.0.0, candidate.tasks.1.0)).collect()
    }

    #[test]
    fn only_backups_of_this_history_count_and_only_up_to_where_it_went_on() {
        let network = genesis().id().unwrap();
        let epochs = Epochs::new(vec![record(1, 100), record(2, 150)], &genesis()).unwrap();
        let other = Epochs::new(vec![record(1, 90)], &genesis()).unwrap();
        let manifests = vec![
            backup(&[], 1, 120),
            backup(&epochs.records()[..1], 50, 130),
            backup(epochs.records(), 90, 400),
            backup(other.records(), 1, 500),
            BackupManifest { network: NetworkId([9; 32]), ..backup(&[], 1, 80) },
        ];
        assert_eq!(tasks(&candidates(manifests, &network, &epochs)), [(1, 100), (50, 130), (90, 400)]);
    }

    #[test]
    fn the_backup_with_most_of_what_is_missing_comes_first_and_each_once() {
        let network = genesis().id().unwrap();
        let manifests = vec![backup(&[], 1, 50), backup(&[], 20, 90), backup(&[], 20, 95), backup(&[], 80, 300)];
        let all = candidates(manifests, &network, &Epochs::default());
        let missing = [(TaskNumber(10), TaskNumber(89)), (TaskNumber(200), TaskNumber(209))];
        let mut tried = BTreeSet::new();
        let mut order = Vec::new();
        while let Some(next) = choose(&all, &missing, &tried) {
            tried.insert(next.manifest.name());
            order.push(next.manifest.next_task_number.0);
        }
        assert_eq!(order, [90, 95, 50, 300]);
        assert!(choose(&all, &[(TaskNumber(300), TaskNumber(400))], &BTreeSet::new()).is_none());
        assert_eq!(overlap((TaskNumber(0), TaskNumber(5)), (TaskNumber(0), TaskNumber(0))), None);
    }
}
