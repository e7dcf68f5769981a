//! The bytes of an outbox's file. Pure.
//!
//! ```text
//! file:   "LOCKSTEPOUTBOX1\n" ‖ id (16 bytes, random) ‖ u64(first number) ‖ check(the rest) ‖ frame*
//! frame:  u32(length of the record) ‖ check(length ‖ record) ‖ record
//! record: 1 ‖ u64(number) ‖ way ‖ content id ‖ body      a message
//!         2 ‖ u64(number)*                               these are about to be sent
//!         3 ‖ u64(number)*                               these are ordered, or set aside
//!         4 ‖ u64(number)*                               these were not sent, or not taken, after all
//! check(x): the first 8 bytes of keccak( "lockstep/outbox/v1" ‖ id ‖ x )
//! ```
//!
//! Numbers are big endian. Appending is cut off by a crash, so only the last frame can be incomplete: it is cut off.
//! A bad frame with a good one behind it means that the file was damaged, which is not for this program to mend.

use bytes::Bytes;
use lockstep_types::{ContentId, keccak256};

use crate::prepared::{Prepared, Way};

/// Longest body of a message: what the largest message of a network's defaults takes when all of it is escaped.
pub const BODY_BYTES_MAX: usize = 512 << 10;

const MAGIC: &[u8; 16] = b"LOCKSTEPOUTBOX1\n";
const DOMAIN: &[u8] = b"lockstep/outbox/v1";
const CHECK: usize = 8;
/// Bytes of the header.
pub(super) const HEADER: usize = 16 + 16 + 8 + CHECK;
const FRAME_HEAD: usize = 4 + CHECK;
/// Kind, number, way and content id.
const MESSAGE_HEAD: usize = 1 + 8 + 1 + 32;
const RECORD_MAX: usize = MESSAGE_HEAD + BODY_BYTES_MAX;

/// What makes this outbox's names differ from those of any other.
pub(crate) type OutboxId = [u8; 16];

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Message { number: u64, prepared: Prepared },
    Offered(Vec<u64>),
    Done(Vec<u64>),
    Withdrawn(Vec<u64>),
}

fn check(id: &OutboxId, parts: [&[u8]; 2]) -> [u8; CHECK] {
    let hash = keccak256(&[DOMAIN, id, parts[0], parts[1]]);
    let mut out = [0; CHECK];
    out.copy_from_slice(&hash[..CHECK]);
    out
}

pub(super) fn header(id: &OutboxId, first_number: u64) -> Vec<u8> {
    let number = first_number.to_be_bytes();
    [&MAGIC[..], id, &number, &check(id, [&number, b""])].concat()
}

/// The id and the first number; `None` for anything that is no header.
pub(crate) fn read_header(bytes: &[u8]) -> Option<(OutboxId, u64)> {
    let rest = bytes.get(..HEADER)?.strip_prefix(MAGIC)?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let (number, sum) = rest.split_first_chunk::<8>()?;
    (check(id, [number, b""])[..] == *sum).then_some((*id, u64::from_be_bytes(*number)))
}

/// Whether a file of so few bytes can only be a header that was not finished.
pub(super) fn is_unfinished_header(bytes: &[u8]) -> bool {
    let shared = bytes.len().min(MAGIC.len());
    bytes.len() < HEADER && bytes[..shared] == MAGIC[..shared]
}

/// The bytes of a record, with its length and checksum.
pub(crate) fn frame(id: &OutboxId, record: &Record) -> Vec<u8> {
    let mut payload = Vec::new();
    match record {
        Record::Message { number, prepared } => {
            payload.push(1);
            payload.extend(number.to_be_bytes());
            payload.push(prepared.way as u8);
            payload.extend(prepared.content_id.0);
            payload.extend_from_slice(&prepared.body);
        }
        Record::Offered(numbers) => list(&mut payload, 2, numbers),
        Record::Done(numbers) => list(&mut payload, 3, numbers),
        Record::Withdrawn(numbers) => list(&mut payload, 4, numbers),
    }
    // Bodies and lists are bounded where they are made.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], &check(id, [&length, &payload]), &payload].concat()
}

fn list(payload: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    payload.push(kind);
    payload.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
}

/// Reads the frame that begins at `at`: its record and where it ends. `None` where there is none that is whole.
pub(crate) fn read_frame(id: &OutboxId, bytes: &[u8], at: usize) -> Option<(Record, usize)> {
    let head = bytes.get(at..at.checked_add(FRAME_HEAD)?)?;
    let (length, sum) = head.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_be_bytes(*length)).ok().filter(|size| (1..=RECORD_MAX).contains(size))?;
    let from = at + FRAME_HEAD;
    let payload = bytes.get(from..from + size)?;
    if check(id, [length, payload])[..] != *sum {
        return None;
    }
    Some((read_record(payload)?, from + size))
}

fn read_record(payload: &[u8]) -> Option<Record> {
    let (kind, rest) = payload.split_first()?;
    match kind {
        1 => {
            let (number, rest) = rest.split_first_chunk::<8>()?;
            let (way, rest) = rest.split_first()?;
            let (content_id, body) = rest.split_first_chunk::<32>()?;
            let (way, body) = (Way::from_byte(*way)?, Bytes::copy_from_slice(body));
            let prepared = Prepared { way, content_id: ContentId(*content_id), body };
            Some(Record::Message { number: u64::from_be_bytes(*number), prepared })
        }
        2..=4 => {
            let (eights, rest) = rest.as_chunks::<8>();
            let numbers = eights.iter().map(|eight| u64::from_be_bytes(*eight)).collect();
            match (rest.is_empty(), kind) {
                (true, 2) => Some(Record::Offered(numbers)),
                (true, 3) => Some(Record::Done(numbers)),
                (true, _) => Some(Record::Withdrawn(numbers)),
                (false, _) => None,
            }
        }
        _ => None,
    }
}

/// Where a whole frame begins at or after `from`, if there is one: the sign of damage before it.
pub(crate) fn find_frame(id: &OutboxId, bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len()).find(|at| read_frame(id, bytes, *at).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: OutboxId = [7; 16];

    fn message(number: u64) -> Record {
        let prepared = Prepared { way: Way::Task, content_id: ContentId([3; 32]), body: Bytes::from_static(b"{}") };
        Record::Message { number, prepared }
    }

    #[test]
    fn records_read_back_and_no_altered_or_shorter_one_does() {
        assert_eq!(read_header(&header(&ID, 9)), Some((ID, 9)));
        for record in [message(5), Record::Offered(vec![1, 2]), Record::Done(vec![u64::MAX]), Record::Withdrawn(vec![])]
        {
            let bytes = frame(&ID, &record);
            assert_eq!(read_frame(&ID, &bytes, 0), Some((record, bytes.len())));
            for cut in 0..bytes.len() {
                assert_eq!(read_frame(&ID, &bytes[..cut], 0), None);
                let mut altered = bytes.clone();
                altered[cut] ^= 1;
                assert_eq!(read_frame(&ID, &altered, 0), None, "{cut}");
            }
            assert_eq!(read_frame(&[8; 16], &bytes, 0), None, "of another outbox");
        }
        assert_eq!(read_frame(&ID, &[0; 64], 0), None);
        assert_eq!(read_frame(&ID, b"", usize::MAX), None);
    }

    #[test]
    fn a_frame_is_found_behind_damage() {
        let bytes = [vec![1, 2, 3], frame(&ID, &message(1))].concat();
        assert_eq!((find_frame(&ID, &bytes, 0), find_frame(&ID, &bytes, 4)), (Some(3), None));
    }
}
