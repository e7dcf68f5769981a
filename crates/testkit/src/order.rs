//! Whether what clients were told, what every node holds and what every output holds is one and the same order. Pure,
//! over the ledger's own types: of a simulation, or of the stores of stopped nodes. [`crate::check`] compares what real
//! nodes show by their API.

mod feeds;
mod registry;
mod repeats;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use lockstep_types::certificate::CertificateError;
use lockstep_types::{
    Batch, BatchHash, BatchHeader, Certificate, ContentId, Hash32, Height, MemberSet, MessageId, NodeId, ProjectId,
    Sequence, TaskId, TaskNumber, TimeMs,
};

use feeds::{Finality, Tasks};

pub use feeds::{FeedPage, SeenTask};
pub use registry::Ban;

/// Violations that are kept; more are only counted.
const KEPT_MAX: usize = 20;

/// A time since the beginning.
pub type At = Duration;

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Nothing yet, or nothing that says whether the message was ordered.
    Unknown,
    /// The message was not ordered by this call.
    Refused,
    /// It has this place.
    Ordered {
        /// Its place.
        sequence: Sequence,
        /// Its batch.
        height: Height,
        /// Its name.
        message_id: MessageId,
    },
    /// It has a place, which this way in does not tell.
    Taken {
        /// Its name, where that was told.
        message_id: Option<MessageId>,
    },
}

/// A call of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was submitted.
    pub content: ContentId,
    /// Which node was asked.
    pub node: NodeId,
    /// When.
    pub invoked: At,
    /// When it was answered.
    pub answered: Option<At>,
    /// What came of it.
    pub told: Told,
}

/// What a node holds in the end.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Which node.
    pub node: NodeId,
    /// Its batches, from height 1 up.
    pub batches: Vec<Batch>,
    /// Its certificates, ascending.
    pub certificates: Vec<Certificate>,
    /// What it has of the registry, in words that are the same where it has the same.
    pub registry: String,
}

/// Where a node's ledger was seen to be, at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// When.
    pub at: At,
    /// Which node.
    pub node: NodeId,
    /// Which of its starts: after one it may be where it was synced last.
    pub life: u64,
    /// Its newest batch.
    pub height: Height,
    /// The hash of that.
    pub hash: BatchHash,
    /// The newest batch that it knows to be final.
    pub final_height: Height,
}

/// A task that an output got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// When.
    pub at: At,
    /// Its number.
    pub number: TaskNumber,
    /// Its name.
    pub id: TaskId,
    /// Its messages: place, and payload.
    pub messages: Vec<(Sequence, Vec<u8>)>,
}

/// What an output holds, in the order of writing.
#[derive(Debug, Clone)]
pub struct Store {
    /// What to call it.
    pub name: String,
    /// Whether it takes each task once. One that does not may have the same task again.
    pub once: bool,
    /// Its tasks.
    pub rows: Vec<Row>,
}

/// Everything there is to compare.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What clients asked.
    pub calls: Vec<Call>,
    /// What nodes hold in the end; all of them have caught up.
    pub chains: Vec<Chain>,
    /// What was seen meanwhile, by ascending time.
    pub sightings: Vec<Sighting>,
    /// What outputs hold.
    pub stores: Vec<Store>,
    /// What readers of the feed saw, one after the other.
    pub feeds: Vec<Vec<FeedPage>>,
    /// Which devices were not allowed where.
    pub bans: Vec<Ban>,
    /// What the registry has to be in the end, where that is known.
    pub registry: Option<String>,
    /// Number of the network's first task.
    pub first_task: TaskNumber,
    /// Members of the genesis.
    pub first_set: MemberSet,
    /// Projects in which the same content counts again after so many milliseconds.
    pub windows: BTreeMap<ProjectId, u64>,
    /// After how many it does elsewhere; `None`: never.
    pub window_ms: Option<u64>,
    /// What else went wrong: a node that panicked, no progress.
    pub troubles: Vec<(Promise, String)>,
}

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Promise {
    /// Batches form a chain without gap and repeat.
    Chain,
    /// The same bytes at each height, on every node, at every time.
    Agreement,
    /// What was acknowledged is there, where it was said to be.
    Kept,
    /// The same content has one place.
    Once,
    /// What was refused is not there, nor what nobody submitted.
    Origin,
    /// A message that was acknowledged before another was submitted stands before it.
    Order,
    /// One certificate a height, over what is there, by a majority of those who are voters at that height.
    Certificate,
    /// Nothing goes back.
    Forward,
    /// Every message is in one task.
    Packing,
    /// Outputs hold every task, as it is, and none before it was final.
    Output,
    /// What a project's owner ordered holds from there on, everywhere.
    Registry,
    /// Readers of the feed see every task once, in order, as it is, and none before it was final.
    Feed,
    /// When all is well again, the network goes on.
    Progress,
    /// What is stored does not grow with a network's age, but for what is on a list, each with its bound.
    Bounded,
    /// No node panics.
    Sane,
}

/// Broken promises.
#[derive(Debug, Clone, Default)]
pub struct Violations {
    /// The first of them.
    pub kept: Vec<(Promise, String)>,
    /// How many there are.
    pub count: usize,
    /// Which promises were broken.
    pub promises: BTreeSet<Promise>,
}

impl Violations {
    /// One more.
    pub fn add(&mut self, promise: Promise, text: String) {
        self.count += 1;
        self.promises.insert(promise);
        if self.kept.len() < KEPT_MAX {
            self.kept.push((promise, text));
        }
    }
}

impl Violations {
    /// Whether one of these promises was broken.
    pub fn show(&self, promises: &[Promise]) -> bool {
        promises.iter().any(|promise| self.promises.contains(promise))
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} violations:", self.count)?;
        self.kept.iter().try_for_each(|(promise, text)| writeln!(f, "  {promise:?}: {text}"))
    }
}

/// Compares everything with everything. Nothing is returned where all promises were kept.
pub fn check(evidence: &Evidence) -> Violations {
    let mut violations = Violations::default();
    for (promise, text) in &evidence.troubles {
        violations.add(*promise, text.clone());
    }
    let mut known = Known::default();
    for chain in &evidence.chains {
        check_chain(chain, evidence.first_task, &mut known, &mut violations);
        check_certificates(chain, &evidence.first_set, &mut known, &mut violations);
    }
    let longest = evidence.chains.iter().max_by_key(|chain| chain.batches.len());
    let Some(longest) = longest else {
        violations.add(Promise::Progress, "no node has a chain".into());
        return violations;
    };
    for other in &evidence.chains {
        check_agreement(longest, other, &mut violations);
    }
    check_sightings(longest, &evidence.sightings, &mut known, &mut violations);
    check_calls(longest, evidence, &mut violations);
    registry::check_bans(longest, &evidence.bans, &mut violations);
    registry::check_registries(&evidence.chains, evidence.registry.as_deref(), &mut violations);
    let tasks = Tasks::of(longest);
    for store in &evidence.stores {
        check_store(&tasks, store, &evidence.sightings, &mut violations);
    }
    for (reader, pages) in evidence.feeds.iter().enumerate() {
        feeds::check_feed((reader, pages), &tasks, &evidence.sightings, &mut violations);
    }
    violations
}

/// Hashes and signatures that were computed already: most chains have the same headers and certificates.
#[derive(Default)]
struct Known<'a> {
    headers: HashMap<Height, (&'a BatchHeader, BatchHash)>,
    certificates: HashMap<Height, (&'a Certificate, &'a MemberSet)>,
}

impl<'a> Known<'a> {
    fn hash(&mut self, header: &'a BatchHeader) -> BatchHash {
        match self.headers.get(&header.height) {
            Some((known, hash)) if *known == header => *hash,
            _ => {
                let hash = header.hash();
                self.headers.insert(header.height, (header, hash));
                hash
            }
        }
    }

    fn verify(&mut self, certificate: &'a Certificate, set: &'a MemberSet) -> Result<(), CertificateError> {
        if self.certificates.get(&certificate.height) != Some(&(certificate, set)) {
            certificate.verify(set)?;
            self.certificates.insert(certificate.height, (certificate, set));
        }
        Ok(())
    }
}

fn check_chain<'a>(chain: &'a Chain, first_task: TaskNumber, known: &mut Known<'a>, violations: &mut Violations) {
    let (mut parent, mut sequence, mut task) = (BatchHash::ZERO, 1, first_task.0);
    let mut tasked: HashMap<Sequence, usize> = HashMap::new();
    for (height, batch) in (1..).zip(&chain.batches) {
        let header = &batch.header;
        let is = (header.height.0, header.parent, header.first_sequence.0, header.first_task_number.0);
        if is != (height, parent, sequence, task) {
            let expected = (height, parent, sequence, task);
            violations.add(Promise::Chain, format!("node {}: {is:?} where {expected:?} was expected", chain.node));
        }
        if header.message_count != batch.messages.len() as u64 || header.task_count != batch.tasks.len() as u64 {
            violations.add(Promise::Chain, format!("node {}: batch {height} has other counts", chain.node));
        }
        for packed in batch.tasks.iter().flat_map(|task| &task.sequences) {
            *tasked.entry(*packed).or_default() += 1;
        }
        (parent, sequence, task) = (known.hash(header), sequence + header.message_count, task + header.task_count);
    }
    for sequence in (1..sequence).map(Sequence) {
        match tasked.remove(&sequence) {
            Some(1) | None => {}
            Some(count) => {
                violations
                    .add(Promise::Packing, format!("node {}: message {sequence} is in {count} tasks", chain.node));
            }
        }
    }
    if !tasked.is_empty() {
        violations.add(Promise::Packing, format!("node {}: tasks have messages that are in no batch", chain.node));
    }
}

fn check_certificates<'a>(
    chain: &'a Chain,
    first_set: &'a MemberSet,
    known: &mut Known<'a>,
    violations: &mut Violations,
) {
    let later = chain.batches.iter().filter_map(|batch| batch.next_set.as_ref());
    let sets: BTreeMap<Hash32, &MemberSet> =
        std::iter::once(first_set).chain(later).map(|set| (set.hash(), set)).collect();
    for certificate in &chain.certificates {
        let batch =
            usize::try_from(certificate.height.0).ok().and_then(|height| chain.batches.get(height.wrapping_sub(1)));
        if batch.map(|batch| known.hash(&batch.header)) != Some(certificate.hash) {
            let text = format!("node {}: the certificate at {} is over another batch", chain.node, certificate.height);
            violations.add(Promise::Certificate, text);
        }
        let set = batch.and_then(|batch| sets.get(&batch.header.members));
        if let Some(Err(error)) = set.map(|set| known.verify(certificate, set)) {
            let text = format!("node {}: the certificate at {}: {error}", chain.node, certificate.height);
            violations.add(Promise::Certificate, text);
        }
    }
    if !chain.certificates.is_sorted_by(|a, b| a.height < b.height) {
        violations.add(Promise::Certificate, format!("node {} has two certificates for one height", chain.node));
    }
}

fn check_agreement(longest: &Chain, other: &Chain, violations: &mut Violations) {
    let names = format!("nodes {} and {}", longest.node, other.node);
    if other.batches.len() != longest.batches.len() {
        let text = format!("{names} have {} and {} batches", longest.batches.len(), other.batches.len());
        violations.add(Promise::Progress, text);
    }
    if let Some((a, _)) = longest.batches.iter().zip(&other.batches).find(|(a, b)| a != b) {
        violations.add(Promise::Agreement, format!("{names} differ at height {}", a.header.height));
    }
    let certified: BTreeMap<Height, BatchHash> = longest.certificates.iter().map(|c| (c.height, c.hash)).collect();
    for certificate in &other.certificates {
        if certified.get(&certificate.height).is_some_and(|hash| *hash != certificate.hash) {
            violations.add(Promise::Certificate, format!("{names} certify two batches at {}", certificate.height));
        }
    }
}

fn check_sightings<'a>(longest: &'a Chain, sightings: &[Sighting], known: &mut Known<'a>, violations: &mut Violations) {
    let mut before: BTreeMap<(NodeId, u64), (Height, Height)> = BTreeMap::new();
    let hashes: Vec<BatchHash> = longest.batches.iter().map(|batch| known.hash(&batch.header)).collect();
    for seen in sightings {
        let known = usize::try_from(seen.height.0).ok().and_then(|height| hashes.get(height.wrapping_sub(1)));
        if seen.height > Height(0) && known != Some(&seen.hash) {
            let text =
                format!("node {} had another batch at {}, {:?} after the start", seen.node, seen.height, seen.at);
            violations.add(Promise::Agreement, text);
        }
        let last = before.entry((seen.node, seen.life)).or_default();
        if seen.height < last.0 || seen.final_height < last.1 || seen.final_height > seen.height {
            let text = format!("node {} went from {last:?} to {:?}", seen.node, (seen.height, seen.final_height));
            violations.add(Promise::Forward, text);
        }
        *last = (seen.height, seen.final_height);
    }
}

/// A place of a content.
struct Placed {
    place: (Sequence, Height, MessageId),
    time: TimeMs,
}

fn check_calls(chain: &Chain, evidence: &Evidence, violations: &mut Violations) {
    let Evidence { calls, windows, window_ms, .. } = evidence;
    let mut placed: HashMap<ContentId, Vec<Placed>> = HashMap::new();
    let mut content_windows: HashMap<ContentId, u64> = HashMap::new();
    // There a device that was refused may be listed again while its message is still on its way.
    let mut owned: HashSet<ContentId> = HashSet::new();
    for batch in &chain.batches {
        let (height, time) = (batch.header.height, batch.header.time_ms);
        for (sequence, ordered) in (batch.header.first_sequence.0..).map(Sequence).zip(&batch.messages) {
            let message = &ordered.message;
            let window = windows.get(&message.project_id).copied().or(*window_ms).unwrap_or(u64::MAX);
            if windows.contains_key(&message.project_id) {
                owned.insert(message.content_id());
            }
            content_windows.insert(message.content_id(), window);
            let places = placed.entry(message.content_id()).or_default();
            if let Some(before) = places.last().filter(|before| time.0.saturating_sub(before.time.0) < window) {
                let first = before.place.0;
                violations.add(Promise::Once, format!("messages {first} and {sequence} say the same"));
            }
            places.push(Placed { place: (sequence, height, ordered.id), time });
        }
    }
    // When a content was submitted, and whether one of the calls may have ordered it.
    let mut asked: HashMap<ContentId, (Vec<At>, bool)> = HashMap::new();
    for call in calls {
        let (invoked, possible) = asked.entry(call.content).or_default();
        let may_have_ordered = call.told != Told::Refused;
        if may_have_ordered || owned.contains(&call.content) {
            invoked.push(call.invoked);
        }
        *possible |= may_have_ordered;
        if let Told::Taken { message_id } = &call.told {
            match placed.get(&call.content).map(Vec::as_slice).unwrap_or_default() {
                [] => violations.add(Promise::Kept, format!("message {message_id:?}, which was taken, is gone")),
                places if message_id.is_none_or(|told| places.iter().any(|placed| placed.place.2 == told)) => {}
                [Placed { place, .. }, ..] => {
                    let text = format!("node {} said {message_id:?}, it is at {place:?}", call.node);
                    violations.add(Promise::Kept, text);
                }
            }
        }
        let Told::Ordered { sequence, height, message_id } = &call.told else { continue };
        let told = (*sequence, *height, *message_id);
        match placed.get(&call.content).map(Vec::as_slice).unwrap_or_default() {
            places if places.iter().any(|placed| placed.place == told) => {}
            [] => violations.add(Promise::Kept, format!("message {sequence}, told by node {}, is gone", call.node)),
            [Placed { place, .. }, ..] => {
                let text = format!("node {} said {told:?}, it is at {place:?}", call.node);
                violations.add(Promise::Kept, text);
            }
        }
    }
    // Until its owner has ordered something, a project has the longer window of all others.
    let may_be_new = |content: &ContentId, window: u64| window < u64::MAX && !owned.contains(content);
    let window_of = |content: &ContentId| content_windows.get(content).copied().filter(|w| may_be_new(content, *w));
    repeats::check_lost(calls, window_of, violations);
    for (content, places) in &placed {
        let sequence = places[0].place.0;
        match asked.get(content) {
            Some((invoked, true)) => {
                let most = repeats::places_max(invoked.clone(), content_windows[content]);
                if places.len() > most {
                    let text = format!(
                        "message {sequence} has {} places: it was submitted at {invoked:?}, which makes {most} at most",
                        places.len()
                    );
                    violations.add(Promise::Once, text);
                }
            }
            Some((_, false)) if owned.contains(content) => {}
            Some((_, false)) => {
                violations.add(Promise::Origin, format!("message {sequence} was refused by every node"));
            }
            None => violations.add(Promise::Origin, format!("nobody submitted message {sequence}")),
        }
    }
    check_order(calls, &placed, violations);
}

/// Acknowledged before another was submitted first: then it stands before it.
fn check_order(calls: &[Call], placed: &HashMap<ContentId, Vec<Placed>>, violations: &mut Violations) {
    let mut first_invoked: HashMap<ContentId, At> = HashMap::new();
    for call in calls {
        let at = first_invoked.entry(call.content).or_insert(call.invoked);
        *at = (*at).min(call.invoked);
    }
    let ordered = |call: &Call| match &call.told {
        Told::Ordered { sequence, .. } => Some((call.answered?, *sequence, call.content)),
        Told::Taken { .. } => Some((call.answered?, placed.get(&call.content)?.first()?.place.0, call.content)),
        Told::Unknown | Told::Refused => None,
    };
    let mut answers: Vec<(At, Sequence, ContentId)> = calls.iter().filter_map(ordered).collect();
    answers.sort();
    let mut begins: Vec<(At, Sequence)> =
        answers.iter().map(|(_, sequence, id)| (first_invoked[id], *sequence)).collect();
    begins.sort();
    // Going through submissions by time, with the greatest place that had been acknowledged by then.
    let (mut acknowledged, mut next) = (Sequence(0), 0);
    for (invoked, sequence) in begins {
        while answers.get(next).is_some_and(|(at, ..)| *at < invoked) {
            acknowledged = acknowledged.max(answers[next].1);
            next += 1;
        }
        if sequence <= acknowledged {
            let text = format!(
                "message {sequence}, submitted at {invoked:?}, stands before {acknowledged}, which was acknowledged"
            );
            violations.add(Promise::Order, text);
        }
    }
}

fn check_store(tasks: &Tasks<'_>, store: &Store, sightings: &[Sighting], violations: &mut Violations) {
    let mut wrong = |what: String| violations.add(Promise::Output, format!("output {}: {what}", store.name));
    let (mut finality, mut last) = (Finality::of(sightings), None);
    for row in &store.rows {
        let newest_final = finality.at(row.at);
        let Some(height) = tasks.height(row.number) else {
            wrong(format!("task {} is none", row.number));
            continue;
        };
        if height > newest_final {
            wrong(format!("task {} came before its batch {height} was final", row.number));
        }
        if !tasks.is_stored(row.number, row.id, &row.messages) {
            wrong(format!("task {} is another one", row.number));
        }
        let next = last.map_or_else(|| tasks.first(), |last: TaskNumber| Some(last.next()));
        let is_new = last.is_none_or(|last| row.number > last);
        if is_new && next != Some(row.number) {
            wrong(format!("task {} follows {last:?}", row.number));
        }
        if !is_new && store.once {
            wrong(format!("task {} is there again", row.number));
        }
        last = last.max(Some(row.number));
    }
    if last != tasks.last() {
        let expected = tasks.last();
        let text = format!("output {}: its last task is {last:?}, the chain's is {expected:?}", store.name);
        violations.add(Promise::Progress, text);
    }
}
