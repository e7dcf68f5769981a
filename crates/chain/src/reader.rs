//! Reads confirmed blocks of a source, so that whoever reads them again finds the same.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lockstep_types::{Address, Hash32, ProjectId};
use serde::Deserialize;
use serde_json::json;

use crate::abi::{self, Word, address_word, number_word};
use crate::error::ChainError;
use crate::event::{EVENTS_MAX, Range, TaskStates};
use crate::log::{Block, Decoded, Log, LogJson, TOPICS, data, in_order, quantity, registry_event, task_state, word};
use crate::rpc::{ANSWER_BYTES_MAX, LOGS_BYTES_MAX, Rpc};
use crate::source::{ChainSource, RANGE_BLOCKS_MAX, SourceError};

/// Logs in one range, ignored ones included.
pub const LOGS_MAX: usize = 65_536;

/// The code of "execution reverted", as most nodes have it.
const REVERTED: i64 = 3;

/// Reads one source by one endpoint. Keeps no cursor; dropping a future of it is safe.
#[derive(Debug)]
pub struct ChainReader {
    rpc: Rpc,
    source: ChainSource,
    /// Blocks in one request for logs, as far as is known what the endpoint allows. Only a hint.
    span: AtomicU64,
    /// Whether the endpoint was once seen to serve the right chain, for view calls. Ranges ask each time.
    right_chain: AtomicBool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockJson {
    number: Option<String>,
    hash: Option<String>,
    parent_hash: String,
}

/// Logs between two blocks that were on one chain before and after.
struct Reading {
    first: Block,
    last: Block,
    logs: Vec<Log>,
}

impl ChainReader {
    /// A reader. Asks nothing yet; [`ChainReader::check`] does.
    pub fn new(rpc: Rpc, source: ChainSource) -> Result<Self, SourceError> {
        source.check()?;
        let span = AtomicU64::new(source.span_max);
        Ok(Self { rpc, source, span, right_chain: AtomicBool::new(false) })
    }

    /// What is read.
    pub fn source(&self) -> &ChainSource {
        &self.source
    }

    /// Whether the endpoint serves the right chain and the contracts are there. For an operator who has just
    /// configured it: a wrong address would read as a chain on which nothing ever happens.
    pub async fn check(&self) -> Result<(), ChainError> {
        self.check_chain().await?;
        for address in self.source.contracts() {
            let code: String = self.rpc.call("eth_getCode", json!([address, "latest"]), ANSWER_BYTES_MAX).await?;
            if code.len() <= "0x".len() {
                return Err(ChainError::NoContract { address });
            }
        }
        Ok(())
    }

    /// The newest block that the endpoint has.
    pub async fn head(&self) -> Result<u64, ChainError> {
        let method = "eth_blockNumber";
        let number: String = self.rpc.call(method, json!([]), ANSWER_BYTES_MAX).await?;
        quantity(&number).ok_or(ChainError::Malformed { method })
    }

    /// Reads from block `first` (or the source's first block, if that is later) as many confirmed blocks as fit
    /// `span_max` and [`EVENTS_MAX`]. `None` when block `first` is not confirmed yet.
    pub async fn next_range(&self, first: u64) -> Result<Option<Range>, ChainError> {
        self.check_chain().await?;
        let first = first.max(self.source.start_block);
        let Some(confirmed) = self.head().await?.checked_sub(self.source.confirmations) else { return Ok(None) };
        if confirmed < first {
            return Ok(None);
        }
        let mut last = confirmed.min(first.saturating_add(self.source.span_max - 1));
        loop {
            let reading = match self.registry_logs(first, last).await {
                // Also what only a crowd of events brings about must not stop the reading for ever.
                Err(ChainError::TooManyLogs { .. }) if last > first => {
                    last = first + (last - first) / 2;
                    continue;
                }
                reading => reading?,
            };
            match self.last_block_that_fits(&reading) {
                fitting if fitting < last => last = fitting,
                _ => return Ok(Some(self.events(reading))),
            }
        }
    }

    /// Reads blocks `first` to `last` once more, as [`ChainReader::next_range`] did somewhere. The same blocks give
    /// an equal range, whatever `span_max` is.
    ///
    /// [`ChainError::NotYet`] while this endpoint has too few blocks on top of `last`.
    pub async fn range(&self, first: u64, last: u64) -> Result<Range, ChainError> {
        self.check_readable(first, last).await?;
        Ok(self.events(self.registry_logs(first, last).await?))
    }

    /// What became of tasks in blocks `first` to `last`, with the same care as [`ChainReader::range`].
    pub async fn task_states(&self, first: u64, last: u64) -> Result<TaskStates, ChainError> {
        let manager = self.source.task_manager.ok_or(ChainError::NoTaskManager)?;
        self.check_readable(first, last).await?;
        let Reading { first, last, logs } = self.read(first, last, &[manager], &TOPICS.of_tasks()).await?;
        let (states, ignored) = decode(&logs, |log| task_state(&manager, log));
        let (last_hash, parent_hash) = (last.hash, first.parent_hash);
        Ok(TaskStates { first: first.number, last: last.number, last_hash, parent_hash, states, ignored })
    }

    /// The URI of the device's document now; `None` for a device that is not registered.
    pub async fn document_uri(&self, device: Address) -> Result<Option<String>, ChainError> {
        let call = abi::call("documentURI(address)", &[address_word(&device)]);
        let Some(answer) = self.view(self.source.registry, &call).await? else { return Ok(None) };
        let offset: Option<&Word> = answer.first_chunk();
        let uri = offset.and_then(|offset| abi::bytes_at(&answer, offset)).ok_or(MALFORMED_CALL)?;
        let usable = uri.len() <= crate::URI_BYTES_MAX;
        Ok(Some(str::from_utf8(uri).ok().filter(|_| usable).unwrap_or_default().to_owned()))
    }

    /// Whether the device may submit to the project now.
    pub async fn approved(&self, project: ProjectId, device: Address) -> Result<bool, ChainError> {
        let call = abi::call("approved(uint256,address)", &[number_word(project.0), address_word(&device)]);
        let answer = self.view(self.source.project_device, &call).await?.ok_or(MALFORMED_CALL)?;
        match answer.first_chunk().and_then(abi::number) {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(MALFORMED_CALL),
        }
    }

    /// Calls a view function on the newest block; `None` when it reverts.
    async fn view(&self, to: Address, call: &[u8]) -> Result<Option<Vec<u8>>, ChainError> {
        if !self.right_chain.load(Ordering::Relaxed) {
            self.check_chain().await?;
        }
        let params = json!([{ "to": to, "data": format!("0x{}", hex::encode(call)) }, "latest"]);
        let answer: String = match self.rpc.call("eth_call", params, ANSWER_BYTES_MAX).await {
            Err(ChainError::Rpc { code, message }) if code == REVERTED || message.contains("revert") => {
                return Ok(None);
            }
            answer => answer?,
        };
        let answer = data(&answer).ok_or(MALFORMED_CALL)?;
        // An address without code answers every call, with nothing.
        if answer.is_empty() { Err(ChainError::NoContract { address: to }) } else { Ok(Some(answer)) }
    }

    async fn check_chain(&self) -> Result<(), ChainError> {
        let method = "eth_chainId";
        let found: String = self.rpc.call(method, json!([]), ANSWER_BYTES_MAX).await?;
        let found = quantity(&found).ok_or(ChainError::Malformed { method })?;
        let expected = self.source.chain_id;
        self.right_chain.store(found == expected, Ordering::Relaxed);
        if found == expected { Ok(()) } else { Err(ChainError::WrongChain { expected, found }) }
    }

    async fn check_readable(&self, first: u64, last: u64) -> Result<(), ChainError> {
        let refuse = |reason| Err(ChainError::Blocks { first, last, reason });
        if first < self.source.start_block {
            return refuse("they begin before the source's first block");
        }
        match last.checked_sub(first) {
            None => return refuse("the last is before the first"),
            Some(more) if more >= RANGE_BLOCKS_MAX => return refuse("too many at once"),
            Some(_) => {}
        }
        self.check_chain().await?;
        match self.head().await?.checked_sub(self.source.confirmations) {
            Some(confirmed) if confirmed >= last => Ok(()),
            _ => Err(ChainError::NotYet { block: last }),
        }
    }

    async fn registry_logs(&self, first: u64, last: u64) -> Result<Reading, ChainError> {
        let contracts = [self.source.registry, self.source.project_device];
        self.read(first, last, &contracts, &TOPICS.of_registry()).await
    }

    /// Logs of consecutive blocks. The last block's hash stands for all before it, so it is what must not change
    /// meanwhile; the first is looked at in between.
    async fn read(
        &self,
        first: u64,
        last: u64,
        contracts: &[Address],
        topics: &[Hash32],
    ) -> Result<Reading, ChainError> {
        let last_block = self.block(last).await?;
        let first_block = if first == last { last_block } else { self.block(first).await? };
        let logs = self.logs(first, last, contracts, topics).await?;
        if self.block(last).await? != last_block {
            return Err(ChainError::Changed { what: "the last block is another one now" });
        }
        let logs = in_order(logs, &first_block, &last_block)?;
        Ok(Reading { first: first_block, last: last_block, logs })
    }

    async fn block(&self, number: u64) -> Result<Block, ChainError> {
        let method = "eth_getBlockByNumber";
        let params = json!([format!("{number:#x}"), false]);
        let block: Option<BlockJson> = self.rpc.call(method, params, ANSWER_BYTES_MAX).await?;
        let block = block.ok_or(ChainError::NotYet { block: number })?;
        let read = || {
            let hash = word(&block.hash?)?;
            let found = quantity(&block.number?).filter(|found| *found == number)?;
            Some(Block { number: found, hash, parent_hash: word(&block.parent_hash)? })
        };
        read().ok_or(ChainError::Malformed { method })
    }

    /// Asks for logs in spans; a span that the endpoint finds too large is halved.
    async fn logs(
        &self,
        first: u64,
        last: u64,
        contracts: &[Address],
        topics: &[Hash32],
    ) -> Result<Vec<Log>, ChainError> {
        let topics: Vec<String> = topics.iter().map(|topic| format!("0x{}", hex::encode(topic))).collect();
        let mut span = self.span.load(Ordering::Relaxed).clamp(1, self.source.span_max);
        let mut logs = Vec::new();
        let mut from = first;
        while from <= last {
            let to = last.min(from.saturating_add(span - 1));
            let filter = json!([{
                "fromBlock": format!("{from:#x}"),
                "toBlock": format!("{to:#x}"),
                "address": contracts,
                "topics": [topics],
            }]);
            match self.rpc.call::<Vec<LogJson>>("eth_getLogs", filter, LOGS_BYTES_MAX).await {
                Ok(found) if logs.len() + found.len() > LOGS_MAX => {
                    return Err(ChainError::TooManyLogs { logs_max: LOGS_MAX as u64 });
                }
                Ok(found) => {
                    for log in found {
                        logs.push(log.try_into()?);
                    }
                    // `last` can be the largest number there is.
                    let Some(next) = to.checked_add(1) else { break };
                    from = next;
                }
                Err(error) if to > from && error.may_pass_with_fewer_blocks() => span = (to - from).div_ceil(2),
                Err(error) => return Err(error),
            }
        }
        // Twice as much the next time, so that one crowded range does not slow down all later ones.
        self.span.store(span.saturating_mul(2), Ordering::Relaxed);
        Ok(logs)
    }

    fn events(&self, reading: Reading) -> Range {
        let Reading { first, last, logs } = reading;
        let (events, ignored) = decode(&logs, |log| registry_event(&self.source, log));
        Range {
            source: self.source.id(),
            first: first.number,
            last: last.number,
            last_hash: last.hash,
            parent_hash: first.parent_hash,
            events,
            ignored,
        }
    }

    /// The last block up to which there are at most [`EVENTS_MAX`] logs; the first one at least.
    fn last_block_that_fits(&self, reading: &Reading) -> u64 {
        match reading.logs.get(EVENTS_MAX) {
            Some(excess) => excess.block.saturating_sub(1).max(reading.first.number),
            None => reading.last.number,
        }
    }
}

const MALFORMED_CALL: ChainError = ChainError::Malformed { method: "eth_call" };

fn decode<T: Debug>(logs: &[Log], decoded: impl Fn(&Log) -> Decoded<T>) -> (Vec<T>, u64) {
    let (mut events, mut ignored) = (Vec::new(), 0);
    for log in logs {
        match decoded(log) {
            Decoded::Event(event) => events.push(event),
            Decoded::Ignored => ignored += 1,
            Decoded::Other => {}
        }
    }
    (events, ignored)
}
