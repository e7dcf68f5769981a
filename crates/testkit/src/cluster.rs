//! Networks of real processes on this machine, made in the way that operators make them: with the program's own
//! commands, a home for each node.

mod faults;
mod homes;
mod members;
mod watch;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_client::{Client, ClientOptions};
use lockstep_types::{Address, Genesis, NetworkParams, NodeId, ProjectSettings, SigningKey};
use tempfile::TempDir;

pub use self::homes::{change_config, genesis_of};
use self::homes::{form_network, id_of, make_node};
pub use self::members::{Ballot, approve};
use crate::disk::Disk;
use crate::partition::Fabric;
use crate::process::NodeProcess;
use crate::tmpfs::Tmpfs;

/// Longest wait for a question about a node's state; a node that was killed does not answer at all.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a network to have its first leader.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What a network is like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes.
    pub nodes: usize,
    /// A PostgreSQL server that the network publishes to, beside the SQLite file of each node.
    pub postgres: Option<String>,
    /// The network's parameters; without them, the ones of a network that anybody may write to.
    pub params: Option<NetworkParams>,
    /// Nodes reach each other through a [`Fabric`].
    pub partitions: bool,
    /// Each node has a loopback address of its own, instead of ports only.
    pub own_addresses: bool,
    /// The node at this place runs on a file system in memory, of this many bytes, where this process may mount one.
    pub in_memory: Option<(usize, u64)>,
    /// Nodes run on disks that can lose what was not synced: see [`Cluster::disk`].
    pub disks: bool,
}

impl ClusterOptions {
    /// A network that takes everything, with a SQLite file on each node and no other output.
    pub fn of(nodes: usize) -> Self {
        Self {
            nodes,
            postgres: None,
            params: None,
            partitions: false,
            own_addresses: false,
            in_memory: None,
            disks: false,
        }
    }

    /// Also publishes to this PostgreSQL server.
    #[must_use]
    pub fn with_postgres(self, dsn: String) -> Self {
        Self { postgres: Some(dsn), ..self }
    }

    /// Has these parameters.
    #[must_use]
    pub fn with_params(self, params: NetworkParams) -> Self {
        Self { params: Some(params), ..self }
    }

    /// Each node has an address of its own.
    #[must_use]
    pub fn with_own_addresses(self) -> Self {
        Self { own_addresses: true, ..self }
    }

    /// Nodes run on disks that can lose what was not synced. For Linux with glibc only: see [`crate::disk::library`].
    #[must_use]
    pub fn with_disks(self) -> Self {
        Self { disks: true, ..self }
    }

    /// The node at a place runs on a small file system in memory, where this process may mount one: see
    /// [`Cluster::tmpfs`].
    #[must_use]
    pub fn with_tmpfs(self, place: usize, bytes: u64) -> Self {
        Self { in_memory: Some((place, bytes)), ..self }
    }

    /// Can be cut: see [`Cluster::partition`].
    #[must_use]
    pub fn with_partitions(self) -> Self {
        Self { partitions: true, ..self }
    }
}

/// Parameters of a network that anybody may write to and read.
pub fn open_params() -> NetworkParams {
    NetworkParams {
        allow_unsigned: true,
        allow_unknown_projects: true,
        public_payloads: true,
        default_project: ProjectSettings::open(),
        ..NetworkParams::default()
    }
}

/// What a node is to the network, as far as the test knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It votes.
    Voter,
    /// It follows without a vote.
    Observer,
    /// It does not belong to the network, any more or yet.
    Outside,
}

/// One node of a cluster.
#[derive(Debug)]
pub struct ClusterNode {
    /// Its process.
    pub process: NodeProcess,
    /// Its id in the network. Its place in the cluster is another number, because ids follow from keys.
    pub id: NodeId,
    /// Address of everything that it listens at.
    pub ip: Ipv4Addr,
    /// Port of HTTP and gRPC.
    pub http_port: u16,
    /// Port where it listens for other nodes.
    pub p2p_port: u16,
    /// Port where other nodes reach it: that of its gate, where it has one.
    pub advertised_port: u16,
    /// What it is to the network.
    pub part: Part,
}

impl ClusterNode {
    /// URL of its HTTP interface.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.ip, self.http_port)
    }

    /// Multiaddress at which other nodes reach it.
    pub fn p2p_address(&self) -> String {
        format!("/ip4/{}/tcp/{}", self.ip, self.advertised_port)
    }

    /// Address of its HTTP interface.
    pub fn address(&self) -> SocketAddr {
        (self.ip, self.http_port).into()
    }
}

/// A network of processes. All are killed, and all files removed, with the value.
pub struct Cluster {
    nodes: Vec<ClusterNode>,
    client: Client,
    options: ClusterOptions,
    fabric: Option<Fabric>,
    disks: Vec<Disk>,
    tmpfs: Option<Tmpfs>,
    directory: TempDir,
}

impl Cluster {
    /// Makes a network, starts all nodes, and waits for a leader that all of them know.
    ///
    /// # Panics
    /// When a command fails or there is no leader in time.
    pub async fn start(binary: &Path, options: ClusterOptions) -> Self {
        let mut cluster = Self::prepare(binary, options);
        cluster.start_all().await;
        cluster
    }

    /// Makes the homes of a network. Nothing runs yet.
    ///
    /// # Panics
    /// When a command fails.
    pub fn prepare(binary: &Path, options: ClusterOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("lockstep-").tempdir().expect("a temporary directory");
        let fabric = options.partitions.then(Fabric::start);
        let tmpfs = options.in_memory.and_then(|(place, bytes)| {
            let place = homes::place_of(directory.path(), place);
            fs::create_dir(&place).expect("a directory for the node");
            Tmpfs::mount(&place, bytes)
        });
        let mut nodes = Vec::with_capacity(options.nodes);
        for index in 0..options.nodes {
            nodes.push(make_node(binary, directory.path(), index, &options, fabric.as_ref()));
        }
        form_network(binary, directory.path(), &options);
        let mut disks = Vec::new();
        for (index, node) in nodes.iter_mut().enumerate() {
            node.id = id_of(node.process.home());
            if options.disks {
                let notes = homes::place_of(directory.path(), index).join("notes");
                let disk = Disk::new(node.process.home(), &notes).expect("a place for notes");
                node.process.set_environment(disk.environment());
                disks.push(disk);
            }
        }
        let client = client_of(&nodes);
        Self { nodes, client, options, fabric, disks, tmpfs, directory }
    }

    /// Starts all nodes that do not run, and waits for a leader that all of them know.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn start_all(&mut self) {
        let members = self.members();
        for index in &members {
            if !self.nodes[*index].process.is_running() {
                self.start_node(*index);
            }
        }
        self.wait_leader(START_DEADLINE).await;
        for index in members {
            self.wait_ready(index, START_DEADLINE).await;
        }
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Places of the nodes that belong to the network.
    pub fn members(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].part != Part::Outside).collect()
    }

    /// Places of the nodes that vote.
    pub fn voters(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].part == Part::Voter).collect()
    }

    /// The node at a place, from 0.
    pub fn node(&self, index: usize) -> &ClusterNode {
        &self.nodes[index]
    }

    /// The node at a place, to stop or start it.
    pub fn node_mut(&mut self, index: usize) -> &mut ClusterNode {
        &mut self.nodes[index]
    }

    /// Where the homes are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client that knows all nodes, in the order of their places.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// URLs of all nodes, in the order of their places.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(ClusterNode::url).collect()
    }

    /// The network.
    ///
    /// # Panics
    /// When its file is damaged.
    pub fn genesis(&self) -> Genesis {
        genesis_of(self.nodes[0].process.home())
    }

    /// Address of the key that the operators sign tasks with.
    ///
    /// # Panics
    /// When its file is damaged.
    pub fn task_signer(&self) -> Address {
        let text = fs::read_to_string(self.nodes[0].process.home().join("task.key")).expect("a task key");
        SigningKey::from_hex(&text).expect("a private key").address()
    }

    /// The SQLite file that a node publishes to.
    pub fn sqlite(&self, index: usize) -> PathBuf {
        self.nodes[index].process.home().join("tasks.sqlite")
    }

    /// The PostgreSQL server that the network publishes to.
    pub fn postgres(&self) -> Option<&str> {
        self.options.postgres.as_deref()
    }

    /// Starts a node; see [`NodeProcess::start`].
    pub fn start_node(&mut self, index: usize) {
        self.nodes[index].process.start();
    }

    /// The disk of a node.
    ///
    /// # Panics
    /// Where the options did not ask for one.
    pub fn disk(&self, index: usize) -> &Disk {
        self.disks.get(index).expect("a cluster made with ClusterOptions::with_disks")
    }

    /// The file system in memory that a node runs on; `None` where the options did not ask for one, or it could not be
    /// mounted.
    pub fn tmpfs(&self) -> Option<&Tmpfs> {
        self.tmpfs.as_ref()
    }

    /// Keeps the files of the nodes when the value goes.
    pub fn keep_files(&mut self) {
        self.directory.disable_cleanup(true);
    }

    /// Memory that a node holds now.
    pub fn rss_bytes(&self, index: usize) -> u64 {
        self.nodes[index].process.rss_bytes()
    }

    /// Wants that no node has panicked, in any of its runs.
    ///
    /// # Panics
    /// With the log from the first panic on.
    pub fn assert_no_panics(&self) {
        for node in &self.nodes {
            node.process.assert_no_panic();
        }
    }

    fn logs(&self) -> String {
        let tail = |node: &ClusterNode| format!("--- node {}\n{}\n", node.id, node.process.log_tail());
        self.nodes.iter().map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            if std::env::var_os("LOCKSTEP_KEEP").is_some() {
                self.directory.disable_cleanup(true);
                eprintln!("kept: {}", self.directory.path().display());
            }
        }
    }
}

fn client_of(nodes: &[ClusterNode]) -> Client {
    let urls = nodes.iter().map(ClusterNode::url).collect();
    let limits = ClientOptions { attempt_timeout: STATUS_TIMEOUT, ..ClientOptions::default() };
    Client::with_options(urls, limits).expect("urls of this machine")
}
