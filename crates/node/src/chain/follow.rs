//! The leader's part: reads, collects the voters' word, and brings the update into the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lockstep_chain::ChainReader;
use lockstep_consensus::{Consensus, Role};
use lockstep_ledger::Command;
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::signature::recover_address;
use lockstep_types::{ChainUpdate, NodeId, Signature};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Chain;
use super::attest::{Attestation, ask_to_attest};
use super::limits::{CHAIN_ATTEST_TIMEOUT, CHAIN_FOLLOWER_POLLS, CHAIN_OBJECTION_TIME};
use super::read::{Found, Scan};
use super::trouble::{Notice, Trouble};
use crate::limits::CONTROL_TIMEOUT;
use crate::tracker::Tracker;

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Follower {
    pub node: NodeId,
    pub chain: Chain,
    pub consensus: Consensus,
    pub network: Handle,
    pub tracker: Arc<Tracker>,
}

/// What the voters said of an update.
#[derive(Debug, Default)]
struct Said {
    signatures: BTreeMap<NodeId, Signature>,
    /// Who read something else, and what.
    differ: Vec<(NodeId, String)>,
    /// Who cannot say now, and why.
    silent: Vec<(NodeId, String)>,
}

impl Said {
    /// What goes into the log.
    fn decide(self, update: &ChainUpdate, needed: usize) -> Result<BTreeMap<NodeId, Signature>, Trouble> {
        let list = |of: &[(NodeId, String)]| {
            of.iter().map(|(node, what)| format!("node {node}: {what}")).collect::<Vec<_>>().join("; ")
        };
        let (first, last) = (update.first, update.last);
        if !self.differ.is_empty() {
            return Err(Trouble::Lasting(format!(
                "the voters' endpoints differ on blocks {first} to {last} of the chain ({}; this node: {} events, last \
                 block 0x{}): nothing is followed until the endpoint that is wrong is corrected",
                list(&self.differ),
                update.events.len(),
                hex::encode(&update.last_hash[..8]),
            )));
        }
        if self.signatures.len() < needed {
            return Err(Trouble::Passing(format!(
                "{} of {needed} voters have attested blocks {first} to {last} of the chain ({})",
                self.signatures.len(),
                list(&self.silent)
            )));
        }
        Ok(self.signatures)
    }
}

impl Follower {
    fn leads(&self) -> bool {
        self.consensus.status().borrow().role == Role::Leader
    }

    /// Follows the chain until `stop`. A node without an endpoint only waits.
    pub async fn run(self, stop: CancellationToken) {
        let mut scan = Scan::default();
        let mut clients: BTreeMap<NodeId, Client> = BTreeMap::new();
        let mut checked = false;
        loop {
            let Some(reader) = self.chain.0.reader.as_ref() else { return stop.cancelled().await };
            let step = async {
                let found = self.step(reader, &mut scan, &mut clients, &mut checked).await;
                let (more, result) = match found {
                    Ok(more) => (more, Ok(())),
                    Err(trouble) => (false, Err(trouble)),
                };
                self.record(result);
                if !more {
                    self.rest().await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = step => {}
            }
        }
    }

    fn record(&self, result: Result<(), Trouble>) {
        match self.chain.0.seen.lock().troubles.record(result, Instant::now()) {
            Some(Notice::Worse(reason)) => tracing::error!(reason, "the chain is not followed"),
            Some(Notice::Better) => tracing::info!("the chain can be followed again"),
            None => {}
        }
    }

    /// Waits for the next look, or until this node begins to lead, or leads no more.
    async fn rest(&self) {
        let leads = self.leads();
        let poll = self.chain.0.poll;
        let poll = if leads { poll } else { poll.saturating_mul(CHAIN_FOLLOWER_POLLS) };
        let pause = self.chain.0.seen.lock().troubles.pause(poll, rand::random_range(0.5..1.0));
        let mut status = self.consensus.status();
        let changed = status.wait_for(|status| (status.role == Role::Leader) != leads);
        tokio::select! {
            () = sleep(pause) => {}
            _ = changed => {}
        }
    }

    /// One look at the chain; true when there may be more to do at once.
    async fn step(
        &self,
        reader: &ChainReader,
        scan: &mut Scan,
        clients: &mut BTreeMap<NodeId, Client>,
        checked: &mut bool,
    ) -> Result<bool, Trouble> {
        if !*checked {
            reader.check().await?;
            *checked = true;
        }
        let confirmed = reader.head().await?.checked_sub(reader.source().confirmations);
        self.chain.0.seen.lock().confirmed = confirmed;
        let next = *self.tracker.next_block.borrow();
        let (Some(next), Some(confirmed), true) = (next, confirmed, self.leads()) else { return Ok(false) };
        let update = match scan.look(reader, next, confirmed).await? {
            Found::Nothing => return Ok(false),
            Found::Quiet => return Ok(true),
            Found::Update(update) => update,
        };
        self.check_parent(&update)?;
        let signatures = self.attested(&update, clients).await?;
        self.propose(&update, &signatures).await?;
        Ok(true)
    }

    /// Whether the update goes on where the log ended.
    fn check_parent(&self, update: &ChainUpdate) -> Result<(), Trouble> {
        let cursor = self.chain.0.state.chain().map_err(|e| Trouble::Lasting(e.to_string()))?;
        match cursor.filter(|cursor| cursor.last + 1 == update.first && cursor.last_hash != update.parent_hash) {
            None => Ok(()),
            Some(cursor) => Err(Trouble::Lasting(format!(
                "block {} of the chain is not the one that this network has read (0x{}): if other endpoints have that one, \
                 correct this node's; else the chain was reorganised deeper than {} blocks, and is followed no further",
                cursor.last,
                hex::encode(cursor.last_hash),
                self.chain.0.confirmations,
            ))),
        }
    }

    /// Asks the other voters. When enough have signed, the rest gets a short time to object.
    async fn attested(
        &self,
        update: &ChainUpdate,
        clients: &mut BTreeMap<NodeId, Client>,
    ) -> Result<BTreeMap<NodeId, Signature>, Trouble> {
        let inner = &self.chain.0;
        let members = self.tracker.members().borrow().clone();
        let set = members.set();
        let needed = usize::try_from(inner.attestations).unwrap_or(usize::MAX).min(set.majority());
        let others: Vec<NodeId> = set.voters().map(|voter| voter.node).filter(|node| *node != self.node).collect();
        clients.retain(|node, _| others.contains(node));
        for node in &others {
            clients.entry(*node).or_insert_with(|| self.network.client(*node, Channel::Control));
        }
        let digest = update.digest(&inner.network, inner.epoch);
        let (blocks, mut said) = ((update.first, update.last), Said::default());
        if set.voter(self.node).is_some() {
            said.signatures.insert(self.node, inner.key.sign(&digest));
        }
        let mut asked: FuturesUnordered<_> =
            clients
                .iter_mut()
                .map(|(node, client)| async move {
                    (*node, ask_to_attest(client, blocks, &digest, CHAIN_ATTEST_TIMEOUT).await)
                })
                .collect();
        let mut deadline = tokio::time::Instant::now() + CHAIN_ATTEST_TIMEOUT;
        if said.signatures.len() >= needed {
            deadline = tokio::time::Instant::now() + CHAIN_OBJECTION_TIME;
        }
        while let Ok(Some((node, answer))) = timeout_at(deadline, asked.next()).await {
            match answer {
                Ok(Attestation::Signed(signature)) if recover_address(&digest, &signature).ok() == set.voter(node) => {
                    said.signatures.insert(node, signature);
                    if said.signatures.len() >= needed {
                        deadline = deadline.min(tokio::time::Instant::now() + CHAIN_OBJECTION_TIME);
                    }
                }
                Ok(Attestation::Signed(_)) => said.silent.push((node, "its signature is not its own".into())),
                Ok(Attestation::Abstains) => said.silent.push((node, "it has no endpoint".into())),
                Ok(Attestation::NotYet(reason)) => said.silent.push((node, reason)),
                Ok(Attestation::Differs(what)) => said.differ.push((node, what)),
                Err(error) => said.silent.push((node, error.to_string())),
            }
        }
        said.decide(update, needed)
    }

    async fn propose(&self, update: &ChainUpdate, signatures: &BTreeMap<NodeId, Signature>) -> Result<(), Trouble> {
        let proposal = self.consensus.propose(Command::encode_chain(self.tracker.now(), update, signatures));
        let passing = |reason: &dyn std::fmt::Display| {
            Trouble::Passing(format!("an update from the chain was not ordered: {reason}"))
        };
        match timeout(CONTROL_TIMEOUT, proposal).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(passing(&error)),
            Err(_) => return Err(passing(&"no majority answered in time")),
        }
        let next = *self.tracker.next_block.borrow();
        if next.is_some_and(|next| next > update.last) {
            tracing::debug!(
                first = update.first,
                last = update.last,
                events = update.events.len(),
                "the chain was followed"
            );
            return Ok(());
        }
        Err(passing(&"the log had moved on; it is read again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update() -> ChainUpdate {
        ChainUpdate { first: 5, last: 9, parent_hash: [1; 32], last_hash: [2; 32], events: Vec::new() }
    }

    fn said(signed: u64) -> Said {
        let signatures = (1..=signed).map(|node| (NodeId(node), Signature([0; 65]))).collect();
        Said { signatures, ..Said::default() }
    }

    #[test]
    fn enough_signatures_and_no_objection_make_an_update() {
        assert_eq!(said(2).decide(&update(), 2).unwrap().len(), 2);
        let silent = Said { silent: vec![(NodeId(3), "it has no endpoint".into())], ..said(2) };
        assert!(silent.decide(&update(), 2).is_ok());
    }

    #[test]
    fn one_voter_that_reads_something_else_stops_it() {
        let objected = Said { differ: vec![(NodeId(3), "no events".into())], ..said(2) };
        let Err(Trouble::Lasting(reason)) = objected.decide(&update(), 1) else { panic!("it was not stopped") };
        assert!(reason.contains("node 3: no events") && reason.contains("blocks 5 to 9"), "{reason}");
    }

    #[test]
    fn too_few_signatures_are_waited_for() {
        let silent = Said { silent: vec![(NodeId(2), "it has no endpoint".into())], ..said(1) };
        let Err(Trouble::Passing(reason)) = silent.decide(&update(), 2) else { panic!("it was not held back") };
        assert!(reason.contains("1 of 2 voters") && reason.contains("node 2: it has no endpoint"), "{reason}");
    }
}
