//! Voters that signed two batches at one height. What proves it is kept in the home and told to every member, and
//! while such a voter has a vote, nothing is acknowledged: nobody knows which of two histories would be final.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_ledger::Members;
use lockstep_store::home::replace_file;
use lockstep_types::conflict::Conflict;
use lockstep_types::{BatchHeader, Epoch, Height, NetworkId, NodeId, Signature, proto};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use crate::error::NodeError;
use crate::home::config_error;
use crate::limits::{CONFLICTS_MAX, SIGHTINGS_MAX};

/// How the files are called: `conflict-EPOCH-HEIGHT-NODE.hex`.
const PREFIX: &str = "conflict-";
const SUFFIX: &str = ".hex";
/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// What voters signed lately, by voter.
#[derive(Debug, Default)]
pub(crate) struct Sightings(BTreeMap<NodeId, VecDeque<(BatchHeader, Signature)>>);

impl Sightings {
    /// Notes what a voter signed; returns the proof if it signed something else at that height before.
    pub fn see(&mut self, node: NodeId, header: BatchHeader, signature: Signature) -> Option<Conflict> {
        let seen = self.0.entry(node).or_default();
        let same_height =
            |(other, _): &&(BatchHeader, Signature)| (other.epoch, other.height) == (header.epoch, header.height);
        match seen.iter().find(same_height) {
            Some((other, _)) if other.hash() == header.hash() => None,
            Some(other) => Some(Conflict { node, signed: [other.clone(), (header, signature)] }),
            None => {
                if seen.len() == SIGHTINGS_MAX {
                    seen.pop_front();
                }
                seen.push_back((header, signature));
                None
            }
        }
    }
}

struct Inner {
    directory: PathBuf,
    network: NetworkId,
    epoch: Epoch,
    known: Mutex<Vec<Conflict>>,
    active: watch::Sender<Option<(NodeId, Height)>>,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Conflicts(Arc<Inner>);

impl Conflicts {
    /// Reads what is kept in a home. Files of other epochs stay where they are.
    pub fn load(directory: &Path, network: NetworkId, epoch: Epoch) -> Result<Self, NodeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| config_error(&path, error)
        };
        let mut known = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed(directory))? {
            let path = entry.map_err(failed(directory))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
                continue;
            }
            let text = match fs::metadata(&path).map_err(failed(&path))?.len() {
                bytes if bytes <= FILE_BYTES_MAX => fs::read_to_string(&path).map_err(failed(&path))?,
                _ => return Err(config_error(&path, "is too large for what it should be")),
            };
            let conflict = decode(&text).map_err(|reason| config_error(&path, reason))?;
            if conflict.epoch() == epoch && known.len() < CONFLICTS_MAX {
                known.push(conflict);
            }
        }
        let (known, active) = (Mutex::new(known), watch::Sender::new(None));
        Ok(Self(Arc::new(Inner { directory: directory.to_owned(), network, epoch, known, active })))
    }

    /// The voter that keeps this node from acknowledging anything, and the height at which it signed twice.
    pub fn active(&self) -> watch::Receiver<Option<(NodeId, Height)>> {
        self.0.active.subscribe()
    }

    /// Everything that is kept, to tell others.
    pub fn known(&self) -> Vec<Conflict> {
        self.0.known.lock().clone()
    }

    /// Looks again who of those that signed twice has a vote.
    pub fn follow(&self, members: &Members) {
        let holds = |conflict: &&Conflict| self.is_proof(conflict, members) && votes(conflict.node, members);
        let active = self.0.known.lock().iter().find(holds).map(|conflict| (conflict.node, conflict.height()));
        self.0.active.send_if_modified(|known| {
            match (&*known, &active) {
                (None, Some((node, height))) => {
                    tracing::error!(%node, %height, "this voter signed two batches at one height: nothing is acknowledged any more until it has no vote");
                }
                (Some((node, _)), None) => tracing::info!(%node, "who signed two batches at one height has no vote any more"),
                _ => {}
            }
            std::mem::replace(known, active) != active
        });
    }

    /// Keeps a proof, durably. One that proves nothing is refused.
    pub fn keep(&self, conflict: Conflict, members: &Members) -> Result<(), String> {
        if !self.is_proof(&conflict, members) {
            return Err("this does not prove that a member signed two batches at one height".into());
        }
        {
            let mut known = self.0.known.lock();
            let same = |other: &Conflict| (other.node, other.height()) == (conflict.node, conflict.height());
            // One proof for a voter says it all; more of them are kept as far as there is room.
            if known.iter().any(same) || known.len() >= CONFLICTS_MAX {
                return Ok(());
            }
            known.push(conflict.clone());
        }
        self.follow(members);
        let name = format!("{PREFIX}{}-{}-{}{SUFFIX}", conflict.epoch(), conflict.height(), conflict.node);
        let text = hex::encode(conflict.to_proto().encode_to_vec()) + "\n";
        replace_file(&self.0.directory.join(name), &text, 0o644).map_err(|e| e.to_string())
    }

    fn is_proof(&self, conflict: &Conflict, members: &Members) -> bool {
        let address = members.get(conflict.node).and_then(|known| Some(known.member.key().ok()?.address()));
        conflict.epoch() == self.0.epoch && address.is_some_and(|a| conflict.verify(&self.0.network, &a).is_ok())
    }
}

fn votes(node: NodeId, members: &Members) -> bool {
    members.set().voter(node).is_some()
}

pub(crate) fn decode(text: &str) -> Result<Conflict, String> {
    let bytes = hex::decode(text.trim()).map_err(|e| e.to_string())?;
    let conflict = proto::Conflict::decode(Bytes::from(bytes)).map_err(|e| e.to_string())?;
    Conflict::from_proto(conflict).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use lockstep_types::certificate::sign_batch;
    use lockstep_types::{Genesis, Incarnation, Member, NetworkParams, SigningKey, TimeMs};

    use super::*;

    fn key(node: u8) -> SigningKey {
        SigningKey::from_bytes([node; 32]).unwrap()
    }

    fn genesis() -> Genesis {
        let member = |n: u8| Member {
            name: format!("n{n}"),
            public_key: hex::encode(key(n).public().compressed()),
            incarnation: Incarnation([n; 16]),
            p2p: format!("/ip4/127.0.0.1/tcp/{n}"),
            http: format!("http://127.0.0.1:{n}"),
        };
        Genesis::new("test", vec![member(1), member(2)], NetworkParams::default()).unwrap()
    }

    fn header(network: NetworkId, height: u64, time_ms: u64) -> BatchHeader {
        BatchHeader { time_ms: TimeMs(time_ms), ..BatchHeader::of_nothing(network, Height(height)) }
    }

    fn see(seen: &mut Sightings, node: u8, header: &BatchHeader) -> Option<Conflict> {
        seen.see(NodeId(node.into()), header.clone(), sign_batch(&key(node), &header.hash()))
    }

    #[test]
    fn who_signs_two_batches_at_one_height_is_noticed_and_who_signs_one_again_is_not() {
        let (network, mut seen) = (NetworkId([1; 32]), Sightings::default());
        for height in 1..=2 * SIGHTINGS_MAX as u64 {
            assert_eq!(see(&mut seen, 1, &header(network, height, 1)), None);
            assert_eq!(see(&mut seen, 1, &header(network, height, 1)), None);
        }
        let last = 2 * SIGHTINGS_MAX as u64;
        assert_eq!(see(&mut seen, 2, &header(network, last, 2)), None, "another voter");
        let conflict = see(&mut seen, 1, &header(network, last - 1, 2)).unwrap();
        assert_eq!(conflict.verify(&network, &key(1).address()), Ok(()));
        assert!(seen.0.values().all(|seen| seen.len() <= SIGHTINGS_MAX));
    }

    #[test]
    fn a_proof_is_kept_over_a_restart_and_counts_while_its_voter_votes() {
        let (genesis, home) = (genesis(), tempfile::tempdir().unwrap());
        let (network, members) = (genesis.id().unwrap(), Members::genesis(&genesis).unwrap());
        let load = || Conflicts::load(home.path(), network, Epoch(0)).unwrap();
        let conflicts = load();
        let voter = genesis.nodes().find(|(_, member)| member.name == "n2").unwrap().0;
        let signed = [1, 2].map(|time| {
            let header = header(network, 7, time);
            (header.clone(), sign_batch(&key(2), &header.hash()))
        });
        let proof = Conflict { node: voter, signed };
        let other = genesis.nodes().find(|(node, _)| *node != voter).unwrap().0;
        assert!(conflicts.keep(Conflict { node: other, ..proof.clone() }, &members).is_err());
        assert_eq!(*conflicts.active().borrow(), None);
        conflicts.keep(proof.clone(), &members).unwrap();
        conflicts.keep(proof.clone(), &members).unwrap();
        let again = load();
        assert_eq!(again.known(), [proof]);
        again.follow(&members);
        for conflicts in [conflicts, again] {
            assert_eq!(*conflicts.active().borrow(), Some((voter, Height(7))));
        }
        let later = Conflicts::load(home.path(), network, Epoch(1)).unwrap();
        assert!(later.known().is_empty(), "an earlier epoch's voters are not this one's");
        fs::write(home.path().join("conflict-0-8-2.hex"), "zz").unwrap();
        assert!(Conflicts::load(home.path(), network, Epoch(0)).is_err());
    }
}
