//! Every bound of what follows the chain, and of what is asked about tasks, in one place.

use std::time::Duration;

/// Blocks of a chain in which nothing happened are told the log when there are this many, or together with the next
/// event: a network that nobody uses writes one entry in this many blocks.
pub const CHAIN_EMPTY_BLOCKS: u64 = 256;
/// Others than the leader ask the chain for its newest block only, and after this many times the leader's pause.
pub const CHAIN_FOLLOWER_POLLS: u32 = 6;
/// What may pass by itself is shown to the operator when it has lasted for this long.
pub const CHAIN_PATIENCE: Duration = Duration::from_secs(30);
/// Longest pause before the chain is asked again after failures.
pub const CHAIN_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Time for a voter to read the same blocks of the chain: several questions to its endpoint.
pub const CHAIN_ATTEST_TIMEOUT: Duration = Duration::from_secs(30);
/// When enough voters have attested, the others have this long to object.
pub const CHAIN_OBJECTION_TIME: Duration = Duration::from_secs(2);
/// Time for the coordinator to say what became of a task; then the answer goes without it.
pub const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer of the coordinator; a larger one counts as none.
pub const COORDINATOR_ANSWER_BYTES_MAX: usize = 64 << 10;
/// States of one task that are taken from the coordinator; the rest is left out.
pub const COORDINATOR_STATES_MAX: usize = 64;
/// Questions to the coordinator at a time; one more is answered without it.
pub const COORDINATOR_QUESTIONS_MAX: usize = 16;
/// How long the coordinator's word, or its silence, is kept.
pub const COORDINATOR_CACHE_TTL: Duration = Duration::from_secs(1);
/// Tasks whose states are kept for that; those of one more are not.
pub const COORDINATOR_CACHE_MAX: usize = 64;
/// States of tasks on the chain that a node keeps; beyond it the oldest go.
pub const TASK_STATES_MAX: u64 = 1_000_000;
