//! Changes of true encodings that are worth trying: bytes, fields of protobuf with their lengths put right, and values of
//! JSON. What only flips bits hardly comes past the first length.

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use serde_json::Value;

use crate::random::Random;

/// Numbers at which programs go wrong.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
    1_709_210_096_789,
];
const TEXTS: [&str; 8] = ["", "0x", "\u{0}", "é\u{fffd}", "../..", "-1", "1e400", "18446744073709551616"];
const DEPTH_MAX: usize = 8;
/// Most copies of a field that are made at once.
const COPIES_MAX: usize = 300;

/// A few changes of `bytes`; `other` is another input to take pieces of.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random, bytes_max: usize) {
    for _ in 0..=random.below(3) {
        match random.below(6) {
            0..=2 if change_fields(bytes, random) => {}
            3 if change_json(bytes, random) => {}
            _ => change_bytes(bytes, other, random),
        }
    }
    bytes.truncate(bytes_max);
}

fn change_bytes(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let to = (at + random.below(9)).min(bytes.len());
    let number = random.of(&NUMBERS).copied().unwrap_or_default();
    let byte = random.number().to_le_bytes()[0];
    match random.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = byte,
        2 => drop(bytes.splice(at..to, [])),
        3 => bytes.insert(at, byte),
        4 => bytes.truncate(at),
        5 => drop(bytes.splice(at..to, number.to_be_bytes())),
        6 => {
            let copy = bytes[at..to].to_vec();
            bytes.splice(at..at, copy);
        }
        _ => {
            let from = random.below(other.len() + 1);
            let end = from + random.below(other.len() - from + 1);
            bytes.splice(at..to, other[from..end].iter().copied());
        }
    }
}

#[derive(Clone)]
enum Content {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Clone)]
struct Field {
    number: u32,
    content: Content,
}

/// The fields of a message; `None` where the bytes are none.
fn fields(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes).ok()?;
        let content = match wire {
            WireType::Varint => Content::Varint(decode_varint(&mut bytes).ok()?),
            WireType::ThirtyTwoBit => {
                let (four, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Content::Fixed32(*four)
            }
            WireType::SixtyFourBit => {
                let (eight, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Content::Fixed64(*eight)
            }
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (inner, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                let message = (depth < DEPTH_MAX && !inner.is_empty()).then(|| fields(inner, depth + 1)).flatten();
                message.map_or_else(|| Content::Bytes(inner.to_vec()), Content::Message)
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        all.push(Field { number, content });
    }
    Some(all)
}

fn encode(fields: &[Field], out: &mut Vec<u8>) {
    for field in fields {
        match &field.content {
            Content::Varint(number) => {
                encode_key(field.number, WireType::Varint, out);
                encode_varint(*number, out);
            }
            Content::Fixed32(four) => {
                encode_key(field.number, WireType::ThirtyTwoBit, out);
                out.extend(four);
            }
            Content::Fixed64(eight) => {
                encode_key(field.number, WireType::SixtyFourBit, out);
                out.extend(eight);
            }
            Content::Bytes(bytes) => {
                encode_key(field.number, WireType::LengthDelimited, out);
                encode_varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Content::Message(inner) => {
                let mut bytes = Vec::new();
                encode(inner, &mut bytes);
                encode_key(field.number, WireType::LengthDelimited, out);
                encode_varint(bytes.len() as u64, out);
                out.append(&mut bytes);
            }
        }
    }
}

fn change_fields(bytes: &mut Vec<u8>, random: &mut Random) -> bool {
    let Some(mut all) = fields(bytes, 0).filter(|all| !all.is_empty()) else { return false };
    change_one(&mut all, random);
    bytes.clear();
    encode(&all, bytes);
    true
}

fn change_one(all: &mut Vec<Field>, random: &mut Random) {
    let at = random.below(all.len());
    if let Some(Field { content: Content::Message(inner), .. }) = all.get_mut(at)
        && !inner.is_empty()
        && random.below(4) > 0
    {
        return change_one(inner, random);
    }
    let number = random.of(&NUMBERS).copied().unwrap_or_default();
    match random.below(8) {
        0 => drop(all.remove(at)),
        1 => all.insert(at, all[at].clone()),
        2 => {
            let copies = vec![all[at].clone(); random.below(COPIES_MAX)];
            all.splice(at..at, copies);
        }
        3 => {
            let other = random.below(all.len());
            all.swap(at, other);
        }
        4 => all[at].number = (random.below(15) + 1) as u32,
        5 => {
            let empty = vec![Field { number: all[at].number, content: Content::Bytes(Vec::new()) }; COPIES_MAX];
            all.splice(at..at, empty);
        }
        _ => match &mut all[at].content {
            Content::Varint(value) => *value = if random.below(3) == 0 { value.wrapping_add(1) } else { number },
            Content::Fixed32(four) => four.copy_from_slice(&number.to_le_bytes()[..4]),
            Content::Fixed64(eight) => *eight = number.to_le_bytes(),
            Content::Bytes(inner) => change_bytes(inner, &number.to_be_bytes(), random),
            Content::Message(inner) => inner.clear(),
        },
    }
}

fn change_json(bytes: &mut Vec<u8>, random: &mut Random) -> bool {
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { return false };
    if !(value.is_object() || value.is_array()) {
        return false;
    }
    change_value(&mut value, random, 0);
    *bytes = value.to_string().into_bytes();
    true
}

fn change_value(value: &mut Value, random: &mut Random, depth: usize) {
    let is_leaf = depth > 0 && random.below(3) == 0;
    match value {
        Value::Object(members) if !is_leaf && !members.is_empty() => {
            let name = members.keys().nth(random.below(members.len())).cloned().unwrap_or_default();
            match random.below(6) {
                0 => drop(members.remove(&name)),
                1 => drop(members.insert("another".into(), Value::Null)),
                _ => members.get_mut(&name).into_iter().for_each(|value| change_value(value, random, depth + 1)),
            }
        }
        Value::Array(entries) if !is_leaf && !entries.is_empty() => {
            let at = random.below(entries.len());
            match random.below(6) {
                0 => drop(entries.remove(at)),
                1 => entries.insert(at, entries[at].clone()),
                2 => *entries = vec![entries[at].clone(); random.below(COPIES_MAX)],
                _ => change_value(&mut entries[at], random, depth + 1),
            }
        }
        Value::String(text) if random.below(2) == 0 => {
            let mut bytes = std::mem::take(text).into_bytes();
            change_bytes(&mut bytes, b"0x", random);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        value => {
            *value = match random.below(6) {
                0 => Value::Null,
                1 => Value::Bool(true),
                2 => Value::Array(vec![]),
                3 => Value::String((*random.of(&TEXTS).unwrap_or(&"")).to_owned()),
                4 => Value::from(-1),
                _ => Value::from(random.of(&NUMBERS).copied().unwrap_or_default()),
            };
        }
    }
}
