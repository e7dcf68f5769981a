//! Every bound of the node's own queues and waits, in one place, but for those of the chain, which are with it. The parts'
//! own bounds are theirs.

use std::time::Duration;

use lockstep_types::genesis::{AGE_MS_MAX, RETRY_MARGIN_MS};

/// Most messages, and bytes, in one proposed batch.
pub const BATCH_MESSAGES_MAX: usize = 2_048;
/// See [`BATCH_MESSAGES_MAX`]. With 16 entries an append message stays far below the frame limit.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Proposals under way at a time: while one is being synced the next one fills.
pub const PROPOSALS_MAX: usize = 2;
/// Most messages, and bytes, in one bundle to the leader or by gossip.
pub const BUNDLE_MESSAGES_MAX: usize = 1_024;
/// See [`BUNDLE_MESSAGES_MAX`]; below the network's limit on gossip.
pub const BUNDLE_BYTES_MAX: usize = 768 << 10;
/// A bundle that the leader has not answered for this long is sent again.
pub const BUNDLE_TIMEOUT: Duration = Duration::from_millis(1_000);
/// A message that was sent to the leader and is not ordered after this time is sent again.
pub const RESEND_AFTER: Duration = Duration::from_millis(500);
/// A message leaves the pool after this time: its sender has given it up by then.
pub const POOL_AGE_MAX: Duration = Duration::from_millis(5_000);
/// A message that is older when it comes into the pool is left out: it could be older than one may be when it leaves it.
pub const ARRIVING_AGE_MS_MAX: u64 = AGE_MS_MAX - POOL_AGE_MAX.as_millis() as u64;
/// A process that did nothing for this long (a debugger, a paused machine, a stalled disk) takes no messages for
/// [`STALL_GRACE`] after it: what waits at its sockets may have been given up by its sender, and ordered by another node,
/// so long ago that it would count as a new reading.
pub const STALL_MAX: Duration = Duration::from_millis(2_000);
/// See [`STALL_MAX`]: time to read, and refuse, what came in meanwhile.
pub const STALL_GRACE: Duration = Duration::from_millis(1_000);
/// Heights for which it is remembered what each voter signed, to notice who signs twice.
pub const SIGHTINGS_MAX: usize = 64;
/// Proofs of double signatures that are kept and told.
pub const CONFLICTS_MAX: usize = 16;
/// How often a node compares its clock with those of the voters.
pub const CLOCK_INTERVAL: Duration = Duration::from_secs(5);
/// … until the first answer: a node does not lead before, or not by its clock.
pub const CLOCK_INTERVAL_FIRST: Duration = Duration::from_millis(200);
/// A machine's clock that is off by more than this has leapt: a node that is the only voter follows it slowly all the
/// same, until [`CLOCK_LEAP_LASTS`].
pub const CLOCK_FOLLOWED_MAX: Duration = Duration::from_secs(60);
/// A leap of the machine's clock that has lasted for this long is taken over by a node that is the only voter.
pub const CLOCK_LEAP_LASTS: Duration = Duration::from_secs(300);
/// Batch time that is further ahead of a node's clock than this is complained of.
pub const BATCH_AHEAD_MAX: Duration = Duration::from_secs(5);
/// A node whose clock is further from the voters' median does not lead.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(2);
// Two leaders may be as far from the median as that, one on each side of it, and messages take their time on the way.
const _: () = assert!(RETRY_MARGIN_MS as u128 > 2 * CLOCK_OFFSET_MAX.as_millis());
/// An answer that takes longer says too little about a clock.
pub const CLOCK_ANSWER_MAX: Duration = Duration::from_secs(1);
/// How often ages are looked at.
pub const TICK: Duration = Duration::from_millis(100);
/// Jobs that wait for the verification threads; one more answers 429, or makes a peer send again.
pub const VERIFY_JOBS_MAX: usize = 16_384;
/// Requests that one verification thread takes up together.
pub const VERIFY_TOGETHER_MAX: usize = 32;
/// Devices, and projects, whose rate is remembered; beyond it the least busy is forgotten.
pub const RATED_DEVICES_MAX: usize = 65_536;
/// See [`RATED_DEVICES_MAX`].
pub const RATED_PROJECTS_MAX: usize = 4_096;
/// Bytes of batch records that one read of the API or the publisher holds.
pub const READ_BYTES_MAX: usize = 4 << 20;
/// Time for a report of an output's progress to be committed.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a change of an output's state that was committed to be applied here.
pub const OUTPUT_CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Locators and commitments of one report on an output, in bytes (one place may exceed it).
pub const PROGRESS_BYTES_MAX: usize = 64 << 10;
/// How often a node that has an output of the network asks whether the leader has it too.
pub const TURN_INTERVAL: Duration = Duration::from_secs(3);
/// A part beside ordering that ended rests for this long before it begins again, and each time twice as long as before.
pub const RESTART_PAUSE_FIRST: Duration = Duration::from_secs(1);
/// See [`RESTART_PAUSE_FIRST`]: it rests no longer than this.
pub const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A part that ran for this long rests for [`RESTART_PAUSE_FIRST`] again when it ends.
pub const RESTART_STEADY: Duration = Duration::from_secs(600);
/// Characters of the reason why a part ended, as it is told.
pub const ENDING_REASON_CHARS_MAX: usize = 200;
/// Time to stop, from the signal to the closing of the store.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the verification threads to end.
pub const VERIFY_STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a successor to take over the lead at shutdown.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Proofs and pages (of tasks, batches and the history) that are put together at a time; others wait. Devices share the
/// cores with their readers.
pub const LARGE_READS_MAX: usize = 2;
/// Reads of single records on behalf of somebody who asks that are under way at a time; others wait. Each takes one of
/// the threads that may block, of which tokio has 512: however long a disk takes, most of them are left for what nobody
/// outside asked for.
pub const SHORT_READS_MAX: usize = 64;
/// Look-ups that wait for a barrier at a time; one more answers 503.
pub const BARRIER_WAITERS_MAX: usize = 256;
/// Time for a barrier: to be committed, and to be applied on the node that was asked.
pub const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);
/// Rest between two barriers of a node, however many ask: each costs the network a sync and an entry.
pub const BARRIER_REST: Duration = Duration::from_millis(100);
/// When to ask again for what had no barrier.
pub const BARRIER_RETRY_MS: u64 = 1_000;
/// The status waits this long for the store to say where outputs are; after that it shows what was last known.
pub const STATUS_READ_MAX: Duration = Duration::from_millis(500);
/// Most payload text, in bytes, of a page of a feed (one task may exceed it).
pub const FEED_PAGE_BYTES_MAX: usize = 4 << 20;
/// Batches that are looked at for one page of a feed.
pub const FEED_BATCHES_LOOKED_AT_MAX: usize = 4_096;
/// Batches in one page of the history.
pub const EXPORT_BATCHES_MAX: usize = 1_024;
/// When to ask again for the proof of what is not final yet.
pub const NOT_FINAL_RETRY_MS: u64 = 1_000;
/// How often the leader asks for a certificate while there is something to certify.
pub const CERTIFY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a voter waits until it has applied and checked the batch that it is to sign.
pub const CERTIFY_WAIT: Duration = Duration::from_millis(1_000);
/// Messages whose evidence is known from when they came in, times two.
pub const EVIDENCE_KNOWN_MAX: usize = 16_384;
/// Bytes of ordered messages that wait in memory for their evidence to be checked; those of more are read from the store.
pub const EVIDENCE_BYTES_MAX: usize = 8 << 20;
/// Messages whose evidence is checked in one go.
pub const EVIDENCE_MESSAGES_MAX: usize = 1_024;
/// Messages whose evidence is checked in one job, so that requests of devices come in between.
pub const EVIDENCE_TOGETHER_MAX: usize = 128;
/// How often the leader looks after members, marks and rules.
pub const DUTIES_INTERVAL: Duration = Duration::from_millis(1_000);
/// How often it is looked whether something may be forgotten.
pub const RETENTION_INTERVAL: Duration = Duration::from_secs(5);
/// Where much is forgotten ([`FORGOTTEN_PARTS`]) and nothing else writes the state to the disk, that is done this often, so
/// that what is forgotten can be removed.
pub const FORGOTTEN_ON_DISK_WITHIN: Duration = Duration::from_secs(15);
/// Much is this part of all batches that are on the disk: a tenth. For less the disk is left alone.
pub const FORGOTTEN_PARTS: u64 = 10;
/// A cut by size that has shown no effect on the disk after this time is made again.
pub const CUT_SETTLES_MAX: Duration = Duration::from_secs(60);
/// Time for a member to answer on the control channel.
pub const CONTROL_TIMEOUT: Duration = Duration::from_millis(2_000);
/// Time for an approval to be committed.
pub const APPROVAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A newcomer that has not asked again for this long is forgotten.
pub const JOIN_REQUEST_LIFE: Duration = Duration::from_secs(3_600);
/// Most newcomers that are remembered at a time.
pub const JOIN_REQUESTS_MAX: usize = 16;
/// An observer that is behind by more log entries than this is not promoted, and a voter that is does not count as able.
pub const PROMOTE_LAG_MAX: u64 = 1_000;
/// Bytes of fetched documents that are kept; beyond it the oldest go.
pub const DOCUMENTS_BYTES_MAX: usize = 16 << 20;
