//! Brings this node's messages to the leader, and by gossip to all.

use std::time::Duration;

use lockstep_consensus::Consensus;
use lockstep_network::{Channel, Client, Handle};
use lockstep_types::NodeId;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::bundle::{self, Taken};
use crate::limits::{BUNDLE_TIMEOUT, TICK};
use crate::mempool::Mempool;
use crate::metrics;

/// Pause after a bundle that was not taken.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Sends bundles to whoever leads: at once when nothing is under way, else what has come meanwhile. Nothing is given
/// up here: what is not ordered in time comes back to the outbox, and a new leader gets everything again.
pub(crate) async fn run_forwarder(
    own: NodeId,
    mempool: Mempool,
    consensus: Consensus,
    network: Handle,
    stop: CancellationToken,
) {
    let mut status = consensus.status();
    let mut leader: Option<(NodeId, Client)> = None;
    loop {
        let now = status.borrow_and_update().clone();
        let target = now.leader.filter(|leader| *leader != own);
        if leader.as_ref().map(|(id, _)| *id) != target {
            leader = target.map(|id| (id, network.client(id, Channel::Bundle)));
            mempool.leader_changed(target.is_some());
        }
        if let Some((_, client)) = &mut leader {
            let sent = tokio::select! {
                () = stop.cancelled() => return,
                sent = send(&mempool, client) => sent,
            };
            if sent {
                continue;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
            () = mempool.arrived.notified(), if leader.is_some() => {}
        }
    }
}

/// Sends one bundle. Says whether it is worth looking for more at once.
async fn send(mempool: &Mempool, client: &mut Client) -> bool {
    let messages = mempool.take_outbox();
    if messages.is_empty() {
        return false;
    }
    let (bytes, count) = bundle::encode(&messages);
    let (sent, rest) = messages.split_at(count);
    mempool.return_outbox(rest);
    match client.call(&[bytes], BUNDLE_TIMEOUT).await {
        Ok(answer) if Taken::decode(&answer) == Taken::Yes => {
            metrics::bundle("leader");
            mempool.note_sent(sent);
        }
        Ok(_) => {
            mempool.return_outbox(sent);
            sleep(RETRY_PAUSE).await;
        }
        Err(error) => {
            tracing::debug!(leader = %client.target(), %error, "a bundle did not reach the leader");
            mempool.return_outbox(sent);
            sleep(RETRY_PAUSE).await;
        }
    }
    true
}

/// Looks after ages, and gossips what is not ordered after `delay_ms`, so that any node can carry on if this one, or
/// the leader, is lost.
pub(crate) async fn run_gossip(mempool: Mempool, network: Handle, delay_ms: u64, stop: CancellationToken) {
    let mut ages = interval(TICK);
    ages.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut gossip = interval(Duration::from_millis(delay_ms.max(1)));
    gossip.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ages.tick() => mempool.tick(),
            _ = gossip.tick() => publish(&mempool, &network, delay_ms),
        }
    }
}

fn publish(mempool: &Mempool, network: &Handle, delay_ms: u64) {
    let messages = mempool.take_gossip(delay_ms);
    let mut rest = &messages[..];
    while !rest.is_empty() {
        let (bytes, count) = bundle::encode(rest);
        network.publish(bytes);
        metrics::bundle("gossip");
        rest = &rest[count..];
    }
}
