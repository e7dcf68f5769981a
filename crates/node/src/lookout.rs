//! Finding the others again. A member that was away while others were admitted does not know them, and turns them away
//! as strangers: also a leader, from whom alone it would hear of them. So a node that hears of no leader asks members
//! that it knows, by the way that newcomers ask, and lets in whom they name.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lockstep_consensus::RaftStatus;
use lockstep_ledger::Members;
use lockstep_network::peer_id_of;
use lockstep_types::{Member, NodeId, SigningKey};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::join::ask_to_join;

/// A node asks when it has heard of no leader for this long, and again after as long: several elections.
const LONE_TIME: Duration = Duration::from_secs(5);

/// Asks the node at a multiaddress, whose key is checked, who the members are. The key and the member are those of who
/// asks. `None`: no answer.
pub type AskMembers =
    Arc<dyn Fn(SigningKey, Member, String) -> BoxFuture<'static, Option<Vec<(NodeId, Member)>>> + Send + Sync>;

/// By the protocol that newcomers ask with.
pub(crate) fn over_the_network() -> AskMembers {
    Arc::new(|key, member, address| {
        async move {
            let answer = ask_to_join(&key, &address, &member).await;
            answer.inspect_err(|error| tracing::debug!(address, %error, "no answer")).ok().map(|answer| answer.members)
        }
        .boxed()
    })
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Lookout {
    pub node: NodeId,
    pub key: SigningKey,
    pub members: watch::Receiver<Arc<Members>>,
    pub status: watch::Receiver<RaftStatus>,
    pub ask: AskMembers,
    /// Whom members named.
    pub found: mpsc::Sender<Vec<(NodeId, Member)>>,
}

impl Lookout {
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.look() => {}
        }
    }

    async fn look(&mut self) {
        loop {
            let has_leader = |status: &RaftStatus| status.leader.is_some();
            let led = tokio::time::timeout(LONE_TIME, self.status.wait_for(has_leader)).await;
            let led = led.map(|status| status.is_ok());
            if led.is_err() {
                self.ask_all().await;
                continue;
            }
            let lost = self.status.wait_for(|status| !has_leader(status)).await.is_ok();
            if led == Ok(false) || !lost {
                // Consensus ends, and the node with it.
                return std::future::pending().await;
            }
        }
    }

    async fn ask_all(&self) {
        let members = self.members.borrow().clone();
        let Some(own) = members.get(self.node).map(|known| known.member.clone()) else { return };
        for (_, known) in members.present().filter(|(node, _)| *node != self.node) {
            let Ok(key) = known.member.key() else { continue };
            let base = known.member.p2p.split("/p2p/").next().unwrap_or_default();
            let address = format!("{base}/p2p/{}", peer_id_of(&key));
            let Some(named) = (self.ask)(self.key.clone(), own.clone(), address).await else { continue };
            if self.found.send(named).await.is_err() {
                return;
            }
        }
    }
}
