//! Logs as an endpoint gives them: checked against each other, then turned into events.

use std::sync::LazyLock;

use lockstep_types::{Address, Hash32, TaskId};
use serde::Deserialize;

use crate::abi::{self, Word};
use crate::error::ChainError;
use crate::event::{Event, TaskState, URI_BYTES_MAX};
use crate::source::ChainSource;

/// Hashes of the events' signatures: ioID's registry, project-device and W3bstream's task manager.
pub(crate) struct Topics {
    new_device: Hash32,
    update_device: Hash32,
    remove_device: Hash32,
    approve: Hash32,
    unapprove: Hash32,
    assigned: Hash32,
    settled: Hash32,
}

pub(crate) static TOPICS: LazyLock<Topics> = LazyLock::new(|| Topics {
    new_device: abi::topic("NewDevice(address,address,bytes32,string)"),
    update_device: abi::topic("UpdateDevice(address,address,bytes32,string)"),
    remove_device: abi::topic("RemoveDevice(address,address)"),
    approve: abi::topic("Approve(uint256,address)"),
    unapprove: abi::topic("Unapprove(uint256,address)"),
    assigned: abi::topic("TaskAssigned(uint256,bytes32,address,uint256)"),
    settled: abi::topic("TaskSettled(uint256,bytes32,address)"),
});

impl Topics {
    /// What a range is made of.
    pub(crate) fn of_registry(&self) -> Vec<Hash32> {
        vec![self.new_device, self.update_device, self.remove_device, self.approve, self.unapprove]
    }

    /// What task states are made of.
    pub(crate) fn of_tasks(&self) -> Vec<Hash32> {
        vec![self.assigned, self.settled]
    }
}

/// A log as JSON-RPC has it. Source: the `Log` object of the Ethereum execution API.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogJson {
    address: String,
    topics: Vec<String>,
    data: String,
    // Null in a log that is in no block yet.
    block_number: Option<String>,
    block_hash: Option<String>,
    log_index: Option<String>,
    #[serde(default)]
    removed: bool,
}

/// A log in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) address: Address,
    /// The hash of the event's signature first.
    pub(crate) topics: Vec<Word>,
    pub(crate) data: Vec<u8>,
    pub(crate) block: u64,
    pub(crate) block_hash: Hash32,
    pub(crate) index: u64,
}

/// A block's place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) number: u64,
    pub(crate) hash: Hash32,
    pub(crate) parent_hash: Hash32,
}

const MALFORMED: ChainError = ChainError::Malformed { method: "eth_getLogs" };

impl TryFrom<LogJson> for Log {
    type Error = ChainError;
    fn try_from(json: LogJson) -> Result<Self, ChainError> {
        if json.removed {
            return Err(ChainError::Changed { what: "a log that a reorganisation removed" });
        }
        let pending = || ChainError::Changed { what: "a log that is in no block" };
        let number = |text: Option<String>| quantity(&text.ok_or_else(pending)?).ok_or(MALFORMED);
        Ok(Self {
            address: json.address.parse().map_err(|_| MALFORMED)?,
            topics: json.topics.iter().map(|topic| word(topic).ok_or(MALFORMED)).collect::<Result<_, _>>()?,
            data: data(&json.data).ok_or(MALFORMED)?,
            block: number(json.block_number)?,
            block_hash: word(&json.block_hash.ok_or_else(pending)?).ok_or(MALFORMED)?,
            index: number(json.log_index)?,
        })
    }
}

/// A number as JSON-RPC writes it: 0x and hex digits.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` takes a sign.
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// 32 bytes as JSON-RPC writes them.
pub(crate) fn word(text: &str) -> Option<Word> {
    data(text)?.try_into().ok()
}

/// Bytes as JSON-RPC writes them.
pub(crate) fn data(text: &str) -> Option<Vec<u8>> {
    hex::decode(text.strip_prefix("0x")?).ok()
}

/// Puts logs in order, or says why they cannot all be of one chain that has these two blocks.
pub(crate) fn in_order(mut logs: Vec<Log>, first: &Block, last: &Block) -> Result<Vec<Log>, ChainError> {
    logs.sort_by_key(|log| (log.block, log.index));
    let changed = |what| Err(ChainError::Changed { what });
    for log in &logs {
        if !(first.number..=last.number).contains(&log.block) {
            return changed("a log of a block that was not asked for");
        }
        if [first, last].iter().any(|end| end.number == log.block && end.hash != log.block_hash) {
            return changed("a log of another block than the chain's");
        }
    }
    for pair in logs.windows(2) {
        if pair[0].block == pair[1].block {
            if pair[0].block_hash != pair[1].block_hash {
                return changed("logs of two blocks at one height");
            }
            if pair[0].index == pair[1].index {
                return changed("the same log twice");
            }
        }
    }
    Ok(logs)
}

/// What one log means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded<T> {
    /// An event.
    Event(T),
    /// Another event, or one of another contract than it should be: nobody's business.
    Other,
    /// An event with values that no message could ever fit.
    Ignored,
}

impl<T> Decoded<T> {
    fn of(event: Option<T>) -> Self {
        event.map_or(Self::Ignored, Self::Event)
    }
}

/// The event of the registry or of project-device in a log.
pub(crate) fn registry_event(source: &ChainSource, log: &Log) -> Decoded<Event> {
    let Some((topic, topics)) = log.topics.split_first() else { return Decoded::Other };
    let from_registry = log.address == source.registry;
    let from_project_device = log.address == source.project_device;
    match topic {
        t if *t == TOPICS.new_device && from_registry => Decoded::of(device(topics, &log.data, false)),
        t if *t == TOPICS.update_device && from_registry => Decoded::of(device(topics, &log.data, true)),
        t if *t == TOPICS.remove_device && from_registry => Decoded::of(removed(topics, &log.data)),
        t if *t == TOPICS.approve && from_project_device => Decoded::of(approval(topics, &log.data, true)),
        t if *t == TOPICS.unapprove && from_project_device => Decoded::of(approval(topics, &log.data, false)),
        _ => Decoded::Other,
    }
}

/// The event of the task manager in a log.
pub(crate) fn task_state(task_manager: &Address, log: &Log) -> Decoded<TaskState> {
    let Some((topic, topics)) = log.topics.split_first() else { return Decoded::Other };
    match topic {
        _ if log.address != *task_manager => Decoded::Other,
        t if *t == TOPICS.assigned => Decoded::of(assigned(topics, &log.data)),
        t if *t == TOPICS.settled => Decoded::of(settled(topics, &log.data)),
        _ => Decoded::Other,
    }
}

/// Which parameters are indexed, by how many are: the leading ones, in all contracts that are known.
fn leading(topics: &[Word]) -> &'static [usize] {
    &[0, 1, 2, 3][..topics.len().min(4)]
}

fn device(topics: &[Word], data: &[u8], updated: bool) -> Option<Event> {
    // At most three can be indexed beside the signature, so the URI never is.
    let [device, owner, hash, uri] = abi::parameters(topics, data, leading(topics))?;
    // The device exists whatever its URI is; without one its document cannot be fetched.
    let uri = abi::bytes_at(data, &uri).filter(|uri| uri.len() <= URI_BYTES_MAX);
    let uri = uri.and_then(|uri| str::from_utf8(uri).ok()).unwrap_or_default().to_owned();
    Some(Event::Device { device: abi::address(&device)?, owner: abi::address(&owner)?, hash, uri, updated })
}

fn removed(topics: &[Word], data: &[u8]) -> Option<Event> {
    let [device, owner] = abi::parameters(topics, data, leading(topics))?;
    Some(Event::Removed { device: abi::address(&device)?, owner: abi::address(&owner)? })
}

fn approval(topics: &[Word], data: &[u8], approved: bool) -> Option<Event> {
    // W3bstream's contract indexes the device alone, which is the second parameter.
    let indexed: &[usize] = if topics.len() == 1 { &[1] } else { leading(topics) };
    let [project, device] = abi::parameters(topics, data, indexed)?;
    let (project, device) = (abi::project(&project)?, abi::address(&device)?);
    Some(if approved { Event::Approved { project, device } } else { Event::Unapproved { project, device } })
}

fn assigned(topics: &[Word], data: &[u8]) -> Option<TaskState> {
    let [project, task, prover, deadline] = abi::parameters(topics, data, leading(topics))?;
    Some(TaskState::Assigned {
        project: abi::project(&project)?,
        task: TaskId(task),
        prover: abi::address(&prover)?,
        deadline: abi::number(&deadline).unwrap_or(u64::MAX),
    })
}

fn settled(topics: &[Word], data: &[u8]) -> Option<TaskState> {
    let [project, task, prover] = abi::parameters(topics, data, leading(topics))?;
    Some(TaskState::Settled { project: abi::project(&project)?, task: TaskId(task), prover: abi::address(&prover)? })
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
