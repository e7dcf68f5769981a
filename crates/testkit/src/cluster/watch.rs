//! Looking at a network from outside, and waiting for what it becomes.

use std::time::{Duration, Instant};

use lockstep_api::views::{HeadView, Role, StatusView};
use lockstep_types::NodeId;

use super::Cluster;
use crate::http;
use crate::wait::eventually;

impl Cluster {
    /// A node's own view of the network.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self, index: usize) -> Result<StatusView, String> {
        self.client.get_json_from(index, "/api/status").await.map_err(|e| e.to_string())
    }

    pub(super) fn place_of(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("nodes of the network only")
    }

    /// Places of the members that run and are not paused.
    pub fn awake(&mut self) -> Vec<usize> {
        let mut members = self.members();
        members.retain(|index| {
            let process = &mut self.nodes[*index].process;
            process.is_running() && !process.is_paused()
        });
        members
    }

    /// The place of the leader, where a majority of voters answers and agrees on one in the newest term.
    ///
    /// # Errors
    /// What is missing.
    pub async fn leader(&mut self) -> Result<usize, String> {
        let mut views = Vec::new();
        for index in self.awake() {
            views.extend(self.status(index).await);
        }
        let voters: Vec<NodeId> = self.voters().iter().map(|index| self.nodes[*index].id).collect();
        let term = views.iter().map(|view| view.term).max().ok_or("no node answers")?;
        let leads = |view: &&StatusView| view.term == term && view.role == Role::Leader;
        let leader = views.iter().find(leads).map(|view| view.node.id).ok_or("no node says that it leads")?;
        let votes = |view: &&StatusView| view.term == term && voters.contains(&view.node.id);
        let follows = |view: &&StatusView| view.leader.as_ref().is_some_and(|known| known.id == leader);
        if 2 * views.iter().filter(votes).filter(follows).count() <= voters.len() {
            return Err(format!("no majority follows node {leader}"));
        }
        Ok(self.place_of(leader))
    }

    /// Waits for a leader that a majority knows; returns its place.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn wait_leader(&mut self, within: Duration) -> usize {
        let logs = self.logs();
        eventually(&format!("the network has a leader\n{logs}"), within, async || self.leader().await).await
    }

    /// Waits until a node says that it has caught up and takes part.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn wait_ready(&mut self, index: usize, within: Duration) {
        let address = self.nodes[index].address();
        let what = format!("node at place {index} is ready");
        let node = &mut self.nodes[index];
        eventually(&what, within, async || {
            assert!(node.process.is_running(), "it has ended:\n{}", node.process.log_tail());
            match http::request(address, "GET", "/readyz", b"").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Waits until all running nodes but the paused ones have the same head; returns it.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn wait_head_equal(&mut self, within: Duration) -> HeadView {
        let running = self.awake();
        eventually("all nodes have the same head", within, async || {
            let mut heads = Vec::new();
            for index in &running {
                heads.push(self.status(*index).await?.head);
            }
            let first = heads.first().ok_or("no node runs")?;
            if heads.iter().all(|head| head == first) { Ok(first.clone()) } else { Err(format!("{heads:?}")) }
        })
        .await
    }

    /// Waits until one of the others reports a leader that is not the node at this place, in a term newer than
    /// `term`. Returns when.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn wait_other_leader(&mut self, gone: usize, term: u64, within: Duration) -> Instant {
        let others: Vec<usize> = self.awake().into_iter().filter(|index| *index != gone).collect();
        let gone = self.nodes[gone].id;
        eventually("another node reports a new leader", within, async || {
            let mut seen = Vec::new();
            for index in &others {
                let view = self.status(*index).await?;
                if view.term > term && view.leader.as_ref().is_some_and(|leader| leader.id != gone) {
                    return Ok(Instant::now());
                }
                seen.push((view.term, view.leader));
            }
            Err(format!("{seen:?}"))
        })
        .await
    }
}
