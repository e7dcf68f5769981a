//! What goes wrong with nodes and between them.

use std::process::ExitStatus;
use std::time::Duration;

use super::Cluster;
use crate::partition::{Fabric, Healing};
use crate::sockets;

impl Cluster {
    /// SIGKILL to a node.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].process.kill();
    }

    /// SIGTERM to a node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn terminate(&mut self, index: usize) {
        self.nodes[index].process.terminate();
    }

    /// SIGSTOP to a node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pause(&mut self, index: usize) {
        self.nodes[index].process.pause();
    }

    /// SIGCONT to a node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resume(&mut self, index: usize) {
        self.nodes[index].process.resume();
    }

    /// SIGTERM to a node; once it has ended it is started again. Says how it ended. See [`Cluster::wait_ready`].
    ///
    /// # Panics
    /// When it does not run, or does not end in time.
    pub async fn restart(&mut self, index: usize, within: Duration) -> ExitStatus {
        self.terminate(index);
        let status = self.nodes[index].process.ended(within).await;
        self.start_node(index);
        status
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// Where the options did not ask for one.
    pub fn fabric(&self) -> &Fabric {
        self.fabric.as_ref().expect("a cluster made with ClusterOptions::with_partitions")
    }

    /// Lets only nodes of the same group reach each other; see [`Fabric::partition`]. HTTP is not cut.
    ///
    /// # Panics
    /// Where the cluster was not made for it.
    pub fn partition(&self, groups: &[&[usize]]) {
        self.fabric().partition(groups);
    }

    /// Cuts a node off from all others.
    ///
    /// # Panics
    /// Where the cluster was not made for it.
    pub fn isolate(&self, index: usize) {
        self.fabric().isolate(index);
    }

    /// Ends all cuts; what was held flows on.
    ///
    /// # Panics
    /// Where the cluster was not made for it.
    pub fn heal(&self) {
        self.fabric().heal(Healing::Flow);
    }

    /// Ends all cuts; connections that were cut are closed.
    ///
    /// # Panics
    /// Where the cluster was not made for it.
    pub fn heal_and_close(&self) {
        self.fabric().heal(Healing::Close);
    }

    /// Connections between nodes that go past the gates, as the places of who dialed and of who was dialed. Cuts do
    /// not reach them, so there must be none.
    pub fn bypasses(&self) -> Vec<(usize, usize)> {
        let ports: Vec<u16> = self.nodes.iter().map(|node| node.p2p_port).collect();
        let processes: Vec<u32> = self.nodes.iter().filter_map(|node| node.process.pid()).collect();
        let place = |pid| self.nodes.iter().position(|node| node.process.pid() == Some(pid));
        let found = sockets::connections_to(&ports, &processes);
        found.iter().filter_map(|(pid, port)| Some((place(*pid)?, ports.iter().position(|p| p == port)?))).collect()
    }
}
