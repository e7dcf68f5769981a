//! Networks of real processes on this machine, made in the way that operators make them: with the program's own
//! commands, a home for each node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_api::views::{HeadView, Role, StatusView};
use lockstep_client::{Client, ClientOptions};
use lockstep_types::{Address, Genesis, Member, NetworkParams, NodeId, SigningKey};
use tempfile::TempDir;

use crate::http;
use crate::ports::free_port;
use crate::process::{NodeProcess, run};
use crate::wait::eventually;

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
}

impl ClusterOptions {
    /// A network that takes everything, with a SQLite file on each node and no other output.
    pub fn of(nodes: usize) -> Self {
        Self { nodes, postgres: None, params: None }
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
}

/// Parameters of a network that anybody may write to and read.
pub fn open_params() -> NetworkParams {
    NetworkParams {
        allow_unsigned: true,
        allow_unknown_projects: true,
        public_payloads: true,
        ..NetworkParams::default()
    }
}

/// One node of a cluster.
#[derive(Debug)]
pub struct ClusterNode {
    /// Its process.
    pub process: NodeProcess,
    /// Its id in the network. Its place in the cluster is another number, because ids follow from keys.
    pub id: NodeId,
    /// Port of HTTP and gRPC.
    pub http_port: u16,
    /// Port for the other nodes.
    pub p2p_port: u16,
}

impl ClusterNode {
    /// URL of its HTTP interface.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// Address of its HTTP interface.
    pub fn address(&self) -> std::net::SocketAddr {
        http::local(self.http_port)
    }
}

/// A network of processes. All are killed, and all files removed, with the value.
pub struct Cluster {
    nodes: Vec<ClusterNode>,
    client: Client,
    options: ClusterOptions,
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
        let mut nodes = Vec::with_capacity(options.nodes);
        for index in 0..options.nodes {
            nodes.push(make_node(binary, directory.path(), index, &options));
        }
        form_network(binary, directory.path(), &options);
        for node in &mut nodes {
            node.id = id_of(node.process.home());
        }
        let urls = nodes.iter().map(ClusterNode::url).collect();
        let limits = ClientOptions { attempt_timeout: STATUS_TIMEOUT, ..ClientOptions::default() };
        let client = Client::with_options(urls, limits).expect("urls of this machine");
        Self { nodes, client, options, directory }
    }

    /// Starts all nodes that do not run, and waits for a leader that all of them know.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn start_all(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.nodes[index].process.is_running() {
                self.start_node(index);
            }
        }
        self.wait_leader(START_DEADLINE).await;
        for index in 0..self.nodes.len() {
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

    /// SIGKILL to a node.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].process.kill();
    }

    /// SIGTERM to a node.
    pub fn terminate(&mut self, index: usize) {
        self.nodes[index].process.terminate();
    }

    /// Memory that a node holds now.
    pub fn rss_bytes(&self, index: usize) -> u64 {
        self.nodes[index].process.rss_bytes()
    }

    /// A node's own view of the network.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self, index: usize) -> Result<StatusView, String> {
        self.client.get_json_from(index, "/api/status").await.map_err(|e| e.to_string())
    }

    fn place_of(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("nodes of the network only")
    }

    fn running(&mut self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].process.is_running()).collect()
    }

    /// The place of the leader, where a majority of nodes answers and agrees on one in the newest term.
    ///
    /// # Errors
    /// What is missing.
    pub async fn leader(&mut self) -> Result<usize, String> {
        let mut views = Vec::new();
        for index in self.running() {
            views.extend(self.status(index).await);
        }
        let term = views.iter().map(|view| view.term).max().ok_or("no node answers")?;
        let leads = |view: &&StatusView| view.term == term && view.role == Role::Leader;
        let leader = views.iter().find(leads).map(|view| view.node.id).ok_or("no node says that it leads")?;
        let follows = |view: &&StatusView| view.term == term && view.leader.as_ref().is_some_and(|l| l.id == leader);
        if 2 * views.iter().filter(follows).count() <= self.nodes.len() {
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

    /// Waits until all running nodes have the same head; returns it.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn wait_head_equal(&mut self, within: Duration) -> HeadView {
        let running = self.running();
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

fn home_of(directory: &Path, index: usize) -> PathBuf {
    directory.join(format!("node-{}", index + 1))
}

/// `lockstep init` in a home of its own, with a shared task key.
fn make_node(binary: &Path, directory: &Path, index: usize, options: &ClusterOptions) -> ClusterNode {
    let home = home_of(directory, index);
    let (http_port, p2p_port) = (free_port(), free_port());
    let p2p = format!("/ip4/127.0.0.1/tcp/{p2p_port}");
    let mut arguments: Vec<String> = vec!["init".into(), "--home".into(), home.display().to_string()];
    let pairs = [
        ("--name", format!("node-{}", index + 1)),
        ("--p2p-address", p2p.clone()),
        ("--p2p-listen", p2p),
        ("--http-url", format!("http://127.0.0.1:{http_port}")),
        ("--http-listen", format!("127.0.0.1:{http_port}")),
    ];
    arguments.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    if index > 0 {
        let key = home_of(directory, 0).join("task.key");
        arguments.extend(["--task-key-file".into(), key.display().to_string()]);
    }
    run(binary, arguments);
    if let Some(dsn) = &options.postgres {
        add_postgres(&home, dsn);
    }
    let process = NodeProcess::new(binary, &home, &directory.join(format!("node-{}.log", index + 1)));
    ClusterNode { process, id: NodeId(0), http_port, p2p_port }
}

/// What an operator adds by hand.
fn add_postgres(home: &Path, dsn: &str) {
    let section =
        "\n[[output]]\nname = \"w3bstream\"\nscope = \"network\"\nkind = \"postgres\"\ndsn_file = \"postgres.dsn\"\n";
    let config = home.join("config.toml");
    let text = fs::read_to_string(&config).expect("init makes config.toml");
    fs::write(config, text + section).expect("config.toml can be written");
    fs::write(home.join("postgres.dsn"), dsn).expect("a file with the connection string");
}

/// Each operator forms the genesis from the members' public parts, or takes one with other parameters.
fn form_network(binary: &Path, directory: &Path, options: &ClusterOptions) {
    let parts: Vec<PathBuf> = (0..options.nodes).map(|index| home_of(directory, index).join("member.json")).collect();
    let mut given: Vec<String> = Vec::new();
    if let Some(params) = &options.params {
        let member = |path: &PathBuf| -> Member {
            let text = fs::read_to_string(path).expect("init makes member.json");
            serde_json::from_str(&text).expect("member.json is a member")
        };
        let genesis = Genesis::new("test", parts.iter().map(member).collect(), params.clone()).expect("a genesis");
        let file = directory.join("genesis.json");
        fs::write(&file, genesis.to_text().expect("a genesis has a text")).expect("a file for the genesis");
        given.extend(["--genesis".into(), file.display().to_string()]);
    } else {
        given.extend(["--network", "test", "--allow-unsigned", "--allow-unknown-projects"].map(str::to_owned));
        given.push("--public-payloads".into());
        for part in &parts {
            given.extend(["--member".into(), part.display().to_string()]);
        }
    }
    for index in 0..options.nodes {
        let home = home_of(directory, index).display().to_string();
        run(binary, ["init".to_owned(), "--home".to_owned(), home].iter().chain(&given));
    }
}

/// The network that a home belongs to.
///
/// # Panics
/// When its file is missing or damaged.
pub fn genesis_of(home: &Path) -> Genesis {
    let text = fs::read_to_string(home.join("genesis.json")).expect("a genesis was installed");
    Genesis::parse(&text).expect("a genesis")
}

fn id_of(home: &Path) -> NodeId {
    let text = fs::read_to_string(home.join("node.key")).expect("init makes a key");
    let key = SigningKey::from_hex(&text).expect("a private key");
    genesis_of(home).member_of(&key.public()).expect("the node is a member").0
}
