//! The epochs of a network after the first one: each began when somebody restored a backup, or went on without the
//! majority that was lost. What was ordered before may have lost its tail there, and no certificate leads across, so
//! whoever goes on trusts the record of it: the file `epoch.json`.

use serde::{Deserialize, Serialize};

use crate::genesis::{Genesis, GenesisError, Member};
use crate::ids::{BatchHash, Epoch, Height, Incarnation, NodeId, Sequence, TaskNumber, TimeMs};
use crate::members::{MemberSet, SetMember};

/// Version of the file.
pub const EPOCHS_VERSION: u32 = 1;
/// Most epochs of a network.
pub const EPOCHS_MAX: usize = 1024;
/// Longest text on what may be lost, in bytes.
pub const POSSIBLE_LOSS_BYTES_MAX: usize = 4096;

/// Why an epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EpochReason {
    /// A backup was restored.
    Restore,
    /// A node went on without the lost majority.
    Recovery,
}

impl std::fmt::Display for EpochReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Restore => "restore",
            Self::Recovery => "recovery",
        })
    }
}

/// A first voter of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochMember {
    /// Its id, which no member of an earlier epoch had.
    pub node: NodeId,
    /// As [`Member::name`].
    pub name: String,
    /// As [`Member::public_key`].
    pub public_key: String,
    /// As [`Member::incarnation`].
    pub incarnation: Incarnation,
    /// As [`Member::p2p`].
    pub p2p: String,
    /// As [`Member::http`].
    pub http: String,
}

impl EpochMember {
    /// The member with its id in the epoch.
    pub fn new(node: NodeId, member: Member) -> Self {
        let Member { name, public_key, incarnation, p2p, http } = member;
        Self { node, name, public_key, incarnation, p2p, http }
    }

    /// The member.
    pub fn member(&self) -> Member {
        Member {
            name: self.name.clone(),
            public_key: self.public_key.clone(),
            incarnation: self.incarnation,
            p2p: self.p2p.clone(),
            http: self.http.clone(),
        }
    }
}

/// How an epoch began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// Its number, from 1.
    pub epoch: Epoch,
    /// Height of the batch that its first batch follows; 0 where there is none.
    pub parent_height: Height,
    /// Hash of that batch; zeros where there is none.
    pub parent_hash: BatchHash,
    /// Sequence of its first message.
    pub next_sequence: Sequence,
    /// Number of its first task.
    pub next_task_number: TaskNumber,
    /// Its first members, all voters, by ascending id.
    pub members: Vec<EpochMember>,
    /// Why it began.
    pub reason: EpochReason,
    /// What the network may have lost, for people.
    pub possible_loss: String,
    /// When it began, by the clock of whoever began it.
    pub time_ms: TimeMs,
}

impl EpochRecord {
    /// Its first voter set.
    pub fn set(&self) -> Result<MemberSet, GenesisError> {
        let member =
            |m: &EpochMember| Ok(SetMember { node: m.node, address: m.member().key()?.address(), voter: true });
        Ok(MemberSet(self.members.iter().map(member).collect::<Result<_, GenesisError>>()?))
    }

    fn check(&self, before: &Self) -> Result<(), GenesisError> {
        let bad = |reason: &str| Err(GenesisError::Invalid(format!("epoch {}: {reason}", self.epoch)));
        if self.epoch != before.epoch.next() {
            return bad("epochs have to be numbered 1, 2, 3, …");
        }
        if self.parent_height < before.parent_height
            || (self.parent_height.0 == 0) != (self.parent_hash == BatchHash::ZERO)
        {
            return bad("its parent cannot be");
        }
        let ascend = self.members.is_sorted_by(|a, b| a.node < b.node);
        let last = before.members.last().map_or(NodeId(0), |member| member.node);
        if !ascend || self.members.first().is_none_or(|first| first.node <= last) {
            return bad("its members have to be new ones, by ascending id, at least one");
        }
        if self.possible_loss.len() > POSSIBLE_LOSS_BYTES_MAX {
            return bad("the text on what may be lost is too long");
        }
        self.members.iter().try_for_each(|member| member.member().check())
    }
}

/// All epochs of a network after epoch 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Epochs(Vec<EpochRecord>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    epochs: Vec<EpochRecord>,
}

impl Epochs {
    /// Checks the records against each other and against the network's genesis.
    ///
    /// # Errors
    /// A sentence on what cannot be.
    pub fn new(records: Vec<EpochRecord>, genesis: &Genesis) -> Result<Self, GenesisError> {
        if records.len() > EPOCHS_MAX {
            return Err(GenesisError::Invalid(format!("a network has at most {EPOCHS_MAX} epochs")));
        }
        let mut before = Self::zero(genesis);
        for record in &records {
            record.check(&before)?;
            before = record.clone();
        }
        Ok(Self(records))
    }

    /// Epoch 0 as if it had a record.
    fn zero(genesis: &Genesis) -> EpochRecord {
        EpochRecord {
            epoch: Epoch(0),
            parent_height: Height(0),
            parent_hash: BatchHash::ZERO,
            next_sequence: Sequence(1),
            next_task_number: genesis.params.first_task_number,
            members: genesis.nodes().map(|(node, member)| EpochMember::new(node, member.clone())).collect(),
            reason: EpochReason::Restore,
            possible_loss: String::new(),
            time_ms: TimeMs(0),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it is not one, or of a newer version.
    pub fn parse(text: &str, genesis: &Genesis) -> Result<Self, GenesisError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed =
            |e: serde_json::Error| GenesisError::Invalid(format!("the list of epochs is not readable: {e}"));
        let Version { version } = serde_json::from_str(text).map_err(malformed)?;
        if version > EPOCHS_VERSION {
            return Err(GenesisError::Invalid(format!(
                "the list of epochs has version {version}, this program knows {EPOCHS_VERSION}; upgrade it"
            )));
        }
        let file: File = serde_json::from_str(text).map_err(malformed)?;
        Self::new(file.epochs, genesis)
    }

    /// The file's text.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn to_text(&self) -> Result<String, GenesisError> {
        let file = File { version: EPOCHS_VERSION, epochs: self.0.clone() };
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }

    /// The epoch that the network is in.
    pub fn current(&self) -> Epoch {
        self.0.last().map_or(Epoch(0), |record| record.epoch)
    }

    /// The records, oldest first.
    pub fn records(&self) -> &[EpochRecord] {
        &self.0
    }

    /// Whether there is no epoch but the first.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with one more.
    ///
    /// # Errors
    /// If it does not follow.
    pub fn with(&self, record: EpochRecord, genesis: &Genesis) -> Result<Self, GenesisError> {
        let mut records = self.0.clone();
        records.push(record);
        Self::new(records, genesis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::genesis::NetworkParams;
    use crate::signature::SigningKey;

    fn member(n: u8) -> Member {
        Member {
            name: format!("node-{n}"),
            public_key: hex::encode(SigningKey::from_bytes([n; 32]).unwrap().public().compressed()),
            incarnation: Incarnation([n; 16]),
            p2p: "/ip4/127.0.0.1/tcp/1".into(),
            http: "http://127.0.0.1:1".into(),
        }
    }

    fn genesis() -> Genesis {
        Genesis::new("test", vec![member(1), member(2)], NetworkParams::default()).unwrap()
    }

    fn record(epoch: u64, height: u64, node: u64) -> EpochRecord {
        EpochRecord {
            epoch: Epoch(epoch),
            parent_height: Height(height),
            parent_hash: if height == 0 { BatchHash::ZERO } else { BatchHash([7; 32]) },
            next_sequence: Sequence(9),
            next_task_number: TaskNumber(9),
            members: vec![EpochMember::new(NodeId(node), member(9))],
            reason: EpochReason::Recovery,
            possible_loss: "a tail".into(),
            time_ms: TimeMs(5),
        }
    }

    #[test]
    fn a_list_survives_its_file_and_says_which_epoch_it_is() {
        let genesis = genesis();
        assert_eq!(Epochs::default().current(), Epoch(0));
        let epochs = Epochs::new(vec![record(1, 5, 3), record(2, 5, 4)], &genesis).unwrap();
        assert_eq!(epochs.current(), Epoch(2));
        let text = epochs.to_text().unwrap();
        assert_eq!(Epochs::parse(&text, &genesis).unwrap(), epochs);
        assert!(Epochs::parse(&text.replace("\"version\": 1", "\"version\": 2"), &genesis).is_err());
        assert!(Epochs::parse(&text.replace("a tail\"", "a tail\", \"more\": 1"), &genesis).is_err());
        let set = epochs.records()[0].set().unwrap();
        assert_eq!((set.0.len(), set.voter(NodeId(3)).is_some()), (1, true));
    }

    #[test]
    fn records_that_do_not_follow_are_refused() {
        let genesis = genesis();
        let list = |records: Vec<EpochRecord>| Epochs::new(records, &genesis);
        list(vec![record(1, 0, 3)]).unwrap();
        assert!(list(vec![record(2, 5, 3)]).is_err(), "epoch 1 is missing");
        assert!(list(vec![record(1, 5, 2)]).is_err(), "an id of the genesis");
        assert!(list(vec![record(1, 5, 3), record(2, 5, 3)]).is_err(), "an id used before");
        assert!(list(vec![record(1, 5, 3), record(2, 4, 4)]).is_err(), "before the epoch before");
        assert!(list(vec![EpochRecord { members: vec![], ..record(1, 5, 3) }]).is_err(), "nobody");
        assert!(list(vec![EpochRecord { parent_hash: BatchHash::ZERO, ..record(1, 5, 3) }]).is_err(), "no parent");
    }
}
