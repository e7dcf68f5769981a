//! A census of what a node stores, by the prefix of keys, and the list of all there is: what goes with the horizon, and what
//! stays, with its bound. docs/formats.md says what the records are, docs/reliability.md has the list in words.

use std::collections::BTreeMap;

use lockstep_store::{Table, keys};

/// Records with a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How many.
    pub keys: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// How many records there are, by table and prefix.
pub type Census = BTreeMap<(Table, u8), Count>;

/// Counts records.
pub fn count<'a>(records: impl Iterator<Item = (Table, &'a [u8], &'a [u8])>) -> Census {
    let mut census = Census::new();
    for (table, key, value) in records {
        let Some(prefix) = key.first() else { continue };
        let count = census.entry((table, *prefix)).or_default();
        count.keys += 1;
        count.bytes += (key.len() + value.len()) as u64;
    }
    census
}

/// Of each prefix the most that two of them have.
pub fn highest(one: &mut Census, other: &Census) {
    for (prefix, count) in other {
        let most = one.entry(*prefix).or_default();
        *most = Count { keys: most.keys.max(count.keys), bytes: most.bytes.max(count.bytes) };
    }
}

/// What the bounds of records that stay are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Projects that there ever were.
    pub projects: u64,
    /// Devices that there ever were.
    pub devices: u64,
    /// Changes of members and of owners of projects.
    pub changes: u64,
    /// Outputs that there ever were.
    pub outputs: u64,
    /// Times that `hard_bytes` took tasks from an output that had not got them.
    pub cuts: u64,
}

/// How many records with a prefix there may be.
#[derive(Clone, Copy)]
enum Bound {
    /// The same number at any age.
    Flat(Kept),
    /// At most so many, at any age.
    Most(fn(&Life) -> u64),
}

/// What records go with that are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// At most one for each batch that is kept.
    Batch,
    /// At most one for each message that is kept. Of which of them there is one follows from settings and rules.
    Message,
    /// They are deleted when a group is closed.
    Open,
    /// They go with the entries of the log.
    Log,
}

/// The list. A prefix that is not on it may not be there.
const KINDS: &[(Table, u8, Bound)] = &[
    (Table::Log, keys::log::ENTRY, Bound::Flat(Kept::Log)),
    (Table::Log, keys::log::VOTE[0], ONE),
    (Table::Log, keys::log::COMMITTED[0], ONE),
    (Table::Log, keys::log::SIGNED[0], ONE),
    (Table::Log, keys::log::MARKS[0], ONE),
    (Table::Log, keys::log::PURGED[0], ONE),
    (Table::Chain, keys::BATCH, Bound::Flat(Kept::Batch)),
    (Table::Chain, keys::SEQUENCE, Bound::Flat(Kept::Batch)),
    (Table::Chain, keys::TASK_NUMBER, Bound::Flat(Kept::Batch)),
    (Table::Chain, keys::CERTIFICATE, Bound::Flat(Kept::Batch)),
    (Table::Chain, keys::BOUNDARY, Bound::Most(|life| life.changes)),
    (Table::Chain, keys::BOUNDARY_CERTIFICATE, Bound::Most(|life| life.changes)),
    (Table::Index, keys::OCCURRENCE, Bound::Flat(Kept::Message)),
    (Table::Index, keys::MESSAGE_PLACE, Bound::Flat(Kept::Message)),
    (Table::Index, keys::TASK_PLACE, Bound::Flat(Kept::Message)),
    (Table::Index, keys::TASK_ALIAS, Bound::Flat(Kept::Message)),
    (Table::Index, keys::PACKED, Bound::Flat(Kept::Message)),
    (Table::Index, keys::FLAGS, Bound::Flat(Kept::Message)),
    (Table::Index, keys::NONCE, Bound::Flat(Kept::Message)),
    (Table::Index, keys::PLACE, Bound::Flat(Kept::Message)),
    (Table::Index, keys::PROGRESS, Bound::Most(|life| life.outputs)),
    (Table::Index, keys::OUTPUT_STATE, Bound::Most(|life| life.outputs)),
    (Table::Index, keys::GAP, Bound::Most(|life| life.cuts)),
    (Table::Index, keys::PROJECT, Bound::Most(|life| life.projects)),
    (Table::Index, keys::DEVICE, Bound::Most(|life| life.devices)),
    (Table::Index, keys::GRANT, Bound::Most(|life| life.projects * life.devices)),
    (Table::Index, keys::LAST, Bound::Most(|life| life.projects * life.devices)),
    (Table::Index, keys::HIGHEST_NONCE, Bound::Most(|life| life.projects * life.devices)),
    // Those in force, and those that the newest order of each project announces.
    (Table::Index, keys::RULES, Bound::Most(|life| 2 * life.projects)),
    (Table::Index, keys::RULES_STATE, Bound::Most(|life| life.projects)),
    (Table::Index, keys::CHAIN[0], ONE),
    (Table::Index, keys::MEMBERS[0], ONE),
    (Table::Index, keys::EPOCH[0], ONE),
    (Table::Index, keys::HEAD[0], ONE),
    (Table::Index, keys::APPLIED[0], ONE),
    (Table::Index, keys::MEMBERSHIP[0], ONE),
    (Table::Open, keys::GROUP, Bound::Flat(Kept::Open)),
    (Table::Open, keys::WAITING, Bound::Flat(Kept::Open)),
];
const ONE: Bound = Bound::Most(|_| 1);

/// What is flat may be more by one in this many later: it goes in steps, and on a disk some time after it is forgotten. What
/// is never forgotten doubles meanwhile.
const MARGIN: u64 = 2;
/// The same of a few records, in keys and in bytes: each time something is forgotten the simulated disk drops half of the index
/// records that may go, so in a short life what is left varies by more than the margin.
const FEW: Count = Count { keys: 600, bytes: 100_000 };

/// What grows though it may not: `earlier` has the most that there was in the first half of a life, `later` that of its last
/// quarter.
pub fn grown(earlier: &Census, later: &Census, life: &Life) -> Vec<String> {
    let mut found = Vec::new();
    for ((table, prefix), now) in later {
        let name = format!("records {:?} of {table:?}", char::from(*prefix));
        let kind = KINDS.iter().find(|(of, known, _)| (of, known) == (table, prefix));
        match kind.map(|(_, _, bound)| bound) {
            None => found.push(format!("{name} are not on the list, and there are {}", now.keys)),
            Some(Bound::Flat(kept)) => {
                let before = of_kept(earlier, *kept).map(|count| count.keys).max().unwrap_or_default();
                if now.keys > most(before, FEW.keys) {
                    let now = now.keys;
                    found.push(format!(
                        "{name} grow with age: there were at most {before} for each {kept:?}, and later {now}"
                    ));
                }
            }
            Some(Bound::Most(bound)) => {
                let bound = bound(life);
                if now.keys > bound {
                    found.push(format!("{name} are at most {bound}, and there are {}", now.keys));
                }
            }
        }
    }
    for kept in [Kept::Batch, Kept::Message, Kept::Open, Kept::Log] {
        let bytes = |census| of_kept(census, kept).map(|count| count.bytes).sum::<u64>();
        let (before, now) = (bytes(earlier), bytes(later));
        if now > most(before, FEW.bytes) {
            found.push(format!("what is kept by {kept:?} grows with age: {before} bytes at most, and later {now}"));
        }
    }
    found
}

fn most(before: u64, few: u64) -> u64 {
    before + before / MARGIN + few
}

/// Counts of the records that go with the same.
fn of_kept(census: &Census, kept: Kept) -> impl Iterator<Item = &Count> {
    let goes = move |bound: &Bound| matches!(bound, Bound::Flat(with) if *with == kept);
    KINDS.iter().filter(move |(.., bound)| goes(bound)).filter_map(|(table, prefix, _)| census.get(&(*table, *prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { projects: 4, devices: 16, changes: 10, outputs: 2, cuts: 0 };

    fn of(table: Table, prefix: u8, keys: u64) -> Census {
        [((table, prefix), Count { keys, bytes: keys * 10 })].into()
    }

    #[test]
    fn what_is_flat_may_not_grow_and_what_stays_has_its_bound() {
        let flat = |before, after| {
            grown(&of(Table::Chain, keys::BATCH, before), &of(Table::Chain, keys::BATCH, after), &LIFE).len()
        };
        assert_eq!((flat(1_000, 2_100), flat(1_000, 2_101), flat(0, 601)), (0, 1, 1));
        // In bytes alone; and of another kind that goes with the same.
        let large = [((Table::Chain, keys::BATCH), Count { keys: 1, bytes: 115_001 })].into();
        assert_eq!(grown(&of(Table::Chain, keys::BATCH, 1_000), &large, &LIFE).len(), 1);
        let other =
            |keys| grown(&of(Table::Index, keys::OCCURRENCE, 1_000), &of(Table::Index, keys::FLAGS, keys), &LIFE);
        assert_eq!((other(2_100).len(), other(2_101).len()), (0, 1));
        let stays = |table, prefix, keys| grown(&Census::new(), &of(table, prefix, keys), &LIFE).len();
        assert_eq!((stays(Table::Index, keys::GRANT, 64), stays(Table::Index, keys::GRANT, 65)), (0, 1));
        assert_eq!((stays(Table::Index, keys::HEAD[0], 1), stays(Table::Index, keys::HEAD[0], 2)), (0, 1));
        assert_eq!(stays(Table::Chain, b'!', 1), 1, "not on the list");
    }

    #[test]
    fn records_are_counted_by_table_and_prefix() {
        let records: [(Table, &[u8], &[u8]); 3] =
            [(Table::Chain, b"b1", b"xy"), (Table::Chain, b"b2", b""), (Table::Index, b"b1", b"x")];
        let mut census = count(records.into_iter());
        assert_eq!(census[&(Table::Chain, b'b')], Count { keys: 2, bytes: 6 });
        highest(&mut census, &of(Table::Index, b'b', 9));
        assert_eq!(census[&(Table::Index, b'b')], Count { keys: 9, bytes: 90 });
        assert_eq!(census[&(Table::Chain, b'b')], Count { keys: 2, bytes: 6 });
    }
}
