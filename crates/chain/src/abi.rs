//! The little of Solidity's ABI that the contracts use. Source: the contract ABI specification of Solidity 0.8.

use lockstep_types::message::PROJECT_ID_MAX;
use lockstep_types::{Address, Hash32, ProjectId, keccak256};

/// One 32-byte word.
pub type Word = [u8; 32];

/// Bytes of a word.
pub(crate) const WORD: usize = 32;

/// The first topic of an event, from its signature such as `Approve(uint256,address)`.
pub(crate) fn topic(signature: &str) -> Hash32 {
    keccak256(&[signature.as_bytes()])
}

/// The data of a call whose arguments are all of fixed size.
pub fn call(signature: &str, arguments: &[Word]) -> Vec<u8> {
    let mut data = topic(signature)[..4].to_vec();
    data.extend(arguments.iter().flatten());
    data
}

/// An event's parameters as one word each, in the order of its signature, wherever they lie: those with the
/// numbers `indexed` in `topics` (without the first), the others in `data`. `None` when something is missing.
pub(crate) fn parameters<const N: usize>(topics: &[Word], data: &[u8], indexed: &[usize]) -> Option<[Word; N]> {
    let (mut topics, mut words) = (topics.iter(), data.as_chunks::<WORD>().0.iter());
    let mut found = [[0; WORD]; N];
    for (number, word) in found.iter_mut().enumerate() {
        *word = *if indexed.contains(&number) { topics.next() } else { words.next() }?;
    }
    topics.next().is_none().then_some(found)
}

/// An address; `None` where the bytes above it are not zero.
pub(crate) fn address(word: &Word) -> Option<Address> {
    let (high, low) = word.split_at(WORD - Address::LEN);
    if high.iter().any(|byte| *byte != 0) {
        return None;
    }
    Address::try_from(low).ok()
}

/// A number that fits 64 bits.
pub(crate) fn number(word: &Word) -> Option<u64> {
    let (high, low) = word.split_last_chunk::<8>()?;
    high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(*low))
}

/// A project that messages can name.
pub(crate) fn project(word: &Word) -> Option<ProjectId> {
    number(word).filter(|id| *id <= PROJECT_ID_MAX).map(ProjectId)
}

/// The bytes of a `string` or `bytes` whose word in the head of `data` is `offset`.
pub(crate) fn bytes_at<'a>(data: &'a [u8], offset: &Word) -> Option<&'a [u8]> {
    let start = usize::try_from(number(offset)?).ok()?;
    let (length, tail) = data.get(start..)?.split_first_chunk::<WORD>()?;
    tail.get(..usize::try_from(number(length)?).ok()?)
}

/// An address as a word.
pub fn address_word(address: &Address) -> Word {
    let mut word = [0; WORD];
    word[WORD - Address::LEN..].copy_from_slice(address.as_bytes());
    word
}

/// A number as a word.
pub fn number_word(number: u64) -> Word {
    let mut word = [0; WORD];
    word[WORD - 8..].copy_from_slice(&number.to_be_bytes());
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_address_or_number_are_refused() {
        let device = Address([7; 20]);
        assert_eq!(address(&address_word(&device)), Some(device));
        assert_eq!(number(&number_word(5)), Some(5));
        assert_eq!((address(&[1; 32]), number(&[1; 32])), (None, None));
        assert_eq!(project(&number_word(PROJECT_ID_MAX)), Some(ProjectId(PROJECT_ID_MAX)));
        assert_eq!(project(&number_word(PROJECT_ID_MAX + 1)), None);
    }

    #[test]
    fn a_string_that_leaves_its_data_is_none() {
        let mut data = [number_word(32), number_word(3)].concat();
        data.extend(b"uri");
        assert_eq!(bytes_at(&data, &number_word(32)), Some(&b"uri"[..]));
        assert_eq!(bytes_at(&data, &number_word(33)), None);
        assert_eq!(bytes_at(&data, &number_word(u64::MAX)), None);
        assert_eq!(bytes_at(&data, &[0xff; 32]), None);
        assert_eq!(bytes_at(&data[..66], &number_word(32)), None);
    }

    #[test]
    fn parameters_are_found_in_topics_and_data() {
        let [a, b] = [number_word(1), number_word(2)];
        assert_eq!(parameters(&[], &[a, b].concat(), &[]), Some([a, b]));
        assert_eq!(parameters(&[b], &a, &[1]), Some([a, b]));
        assert_eq!(parameters(&[a, b], &[], &[0, 1]), Some([a, b]));
        assert_eq!(parameters::<2>(&[a], &[], &[0]), None);
        assert_eq!(parameters::<2>(&[a, b], &[a, b].concat(), &[]), None);
    }
}
