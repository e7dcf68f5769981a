//! Where tasks are in the store of an output: what its receipts say, in the log and to readers.

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{DecodeError, Height, TaskNumber, proto};

/// Longest [`Place::locator`], in bytes.
pub const LOCATOR_BYTES_MAX: usize = 256;
/// Longest [`Place::commitment`], in bytes.
pub const COMMITMENT_BYTES_MAX: usize = 4_096;
/// Most places of one log entry.
pub const PLACES_MAX: usize = 256;

/// How sure it is that tasks stay where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The store has taken them.
    Accepted,
    /// They are part of a block of the store's chain.
    Included,
    /// The store will not take them back.
    Final,
}

/// Where in a store a run of tasks is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Number of the first task.
    pub first: TaskNumber,
    /// Number of the last task.
    pub last: TaskNumber,
    /// Where, in words of the store: at most [`LOCATOR_BYTES_MAX`] bytes, without credentials.
    pub locator: String,
    /// What the store commits to them with; empty where it has nothing of that kind. At most [`COMMITMENT_BYTES_MAX`].
    pub commitment: Vec<u8>,
    /// Height of the store's own chain, where it has one.
    pub height: Option<Height>,
    /// How sure it is.
    pub stage: Stage,
}

impl Place {
    /// This and `next` as one place: where `next` begins in it or right behind, and both are of the same table.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let table = |place: &Self| place.commitment.is_empty() && place.height.is_none();
        let follows = (self.first..=self.last.next()).contains(&next.first);
        let same = (&self.locator, self.stage) == (&next.locator, next.stage);
        (follows && same && table(self) && table(next)).then(|| Self { last: self.last.max(next.last), ..self.clone() })
    }

    /// Whether the task is there.
    pub fn has(&self, task: TaskNumber) -> bool {
        (self.first..=self.last).contains(&task)
    }

    /// As it stands in the log.
    pub fn to_proto(&self) -> proto::Place {
        proto::Place {
            first_task: self.first.0,
            last_task: self.last.0,
            locator: self.locator.clone(),
            commitment: Bytes::copy_from_slice(&self.commitment),
            height: self.height.map(|height| height.0),
            stage: match self.stage {
                Stage::Accepted => 1,
                Stage::Included => 2,
                Stage::Final => 3,
            },
        }
    }

    /// From the log.
    ///
    /// # Errors
    /// Which of its limits it breaks.
    pub fn from_proto(place: proto::Place) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("place", reason);
        if place.first_task > place.last_task {
            return Err(bad("it ends before it begins"));
        }
        if place.locator.len() > LOCATOR_BYTES_MAX || place.commitment.len() > COMMITMENT_BYTES_MAX {
            return Err(bad("its locator or commitment is too long"));
        }
        Ok(Self {
            first: TaskNumber(place.first_task),
            last: TaskNumber(place.last_task),
            locator: place.locator,
            commitment: place.commitment.to_vec(),
            height: place.height.map(Height),
            stage: match place.stage {
                1 => Stage::Accepted,
                2 => Stage::Included,
                3 => Stage::Final,
                _ => return Err(bad("an unknown stage")),
            },
        })
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        self.to_proto().encode_to_vec()
    }

    /// Reads what [`Place::encode`] wrote.
    ///
    /// # Errors
    /// If it is something else.
    pub fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let place = proto::Place::decode(record).map_err(|e| DecodeError::malformed("place", e))?;
        Self::from_proto(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(first: u64, last: u64) -> Place {
        let (first, last) = (TaskNumber(first), TaskNumber(last));
        let locator = "postgres:public".to_owned();
        Place { first, last, locator, commitment: Vec::new(), height: None, stage: Stage::Final }
    }

    #[test]
    fn a_place_reads_back() {
        let celestia = Place { commitment: vec![1, 2], height: Some(Height(0)), stage: Stage::Included, ..place(3, 9) };
        for place in [place(1, 1), celestia] {
            assert_eq!(Place::decode(place.encode().into()).unwrap(), place);
        }
    }

    #[test]
    fn what_breaks_a_limit_is_refused() {
        let good = place(1, 2).to_proto();
        let backwards = proto::Place { first_task: 3, ..good.clone() };
        let long = proto::Place { locator: "x".repeat(LOCATOR_BYTES_MAX + 1), ..good.clone() };
        let heavy = proto::Place { commitment: vec![0; COMMITMENT_BYTES_MAX + 1].into(), ..good.clone() };
        let unsure = proto::Place { stage: 4, ..good };
        for bad in [backwards, long, heavy, unsure] {
            assert!(Place::from_proto(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn runs_in_one_table_are_one_place_and_blobs_are_not() {
        assert_eq!(place(1, 4).joined(&place(5, 6)), Some(place(1, 6)));
        assert_eq!(place(1, 9).joined(&place(5, 6)), Some(place(1, 9)));
        assert_eq!(place(1, 4).joined(&place(6, 6)), None);
        assert_eq!(place(5, 6).joined(&place(1, 4)), None);
        assert_eq!(place(1, 4).joined(&Place { locator: "postgres:other".to_owned(), ..place(5, 6) }), None);
        assert_eq!(place(1, 4).joined(&Place { height: Some(Height(1)), ..place(5, 6) }), None);
        let blob = |first, last| Place { commitment: vec![7], ..place(first, last) };
        assert_eq!(blob(1, 4).joined(&blob(5, 6)), None);
    }
}
