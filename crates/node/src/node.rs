//! Starting and stopping a node.

pub mod bare;
#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests;
mod wiring;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use lockstep_api::ProverStates;
use lockstep_consensus::rebuild::fetch_state;
use lockstep_consensus::{Consensus, Options as ConsensusOptions, Role, StateStore};
use lockstep_ledger::{Members, Projects};
use lockstep_network::{GossipInbox, Handle, Network, Options as NetworkOptions, Peer};
use lockstep_outputs::{Output, Owner, TaskSigner};
use lockstep_types::{Member, NodeId, SigningKey};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::announce;
use crate::backup::{OpenPlace, open_place};
use crate::barrier::Barriers;
use crate::certify::{Certifier, CertifierParts};
use crate::chain::{Chain, ChainServices, TaskStates};
use crate::clock::Clock;
use crate::config::OutputConfig;
use crate::conflicts::Conflicts;
use crate::documents::Documents;
use crate::doors::bind_api;
use crate::endings::Endings;
use crate::error::NodeError;
use crate::evidence::EvidenceQueue;
use crate::features::BUILT_WITH;
use crate::gateways::{GatewayConfig, Gateways};
use crate::held_back::HeldBack;
use crate::home::{Home, Opened};
use crate::ingress::{Ingress, IngressParts};
use crate::limits::{HAND_OVER_TIMEOUT, STOP_TIMEOUT, VERIFY_STOP_TIMEOUT};
use crate::lookout::{self, AskMembers};
use crate::mempool::Mempool;
use crate::open_store;
use crate::operator::{Operator, OperatorParts};
use crate::peers;
use crate::rates::Rates;
use crate::rebuild;
use crate::supervisor::Supervisor;
use crate::tracker::Tracker;
use crate::transport::{LogPositions, NetworkTransport};
use crate::verify::{Verifier, VerifierParts};

/// File descriptors that a node would like: sockets of devices, and files of the stores.
const FILES_WANTED: u64 = 65_536;
/// Time for consensus to say why it stopped, when another part ends.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);
/// How often metrics that age are looked after.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// A node that is up. [`Node::run`] keeps it so.
pub struct Node {
    node: NodeId,
    key: SigningKey,
    members: watch::Receiver<Arc<Members>>,
    supervisor: Supervisor,
    consensus: Consensus,
    network: Handle,
    ingress: Arc<Ingress>,
    verify_threads: Vec<std::thread::JoinHandle<()>>,
    api_stop: CancellationToken,
    /// Cancelled when the interfaces have ended, in whatever way.
    api_ended: CancellationToken,
    http: SocketAddr,
}

/// What starting collects step by step.
pub(crate) struct Parts {
    pub(crate) opened: Opened,
    pub(crate) home: Home,
    pub(crate) state: StateStore,
    mempool: Mempool,
    pub(crate) tracker: Arc<Tracker>,
    verifier: Verifier,
    verify_threads: Vec<std::thread::JoinHandle<()>>,
    pub(crate) network: Handle,
    pub(crate) consensus: Consensus,
    ingress: Arc<Ingress>,
    certifier: Certifier,
    operator: Operator,
    barriers: Barriers,
    conflicts: Conflicts,
    pub(crate) chain: Chain,
    pub(crate) task_states: TaskStates,
    documents: Arc<Documents>,
    prover: Option<Arc<dyn ProverStates>>,
    clock_off: watch::Sender<Option<i64>>,
    /// Why nothing can be forgotten any more.
    not_forgetting: watch::Sender<Option<String>>,
    held_back: watch::Sender<Option<HeldBack>>,
    means: Means,
}

/// Opens the store of an output.
pub type OpenOutput = Arc<dyn Fn(&OutputConfig, &Home, Owner) -> Result<Arc<dyn Output>, NodeError> + Send + Sync>;

/// What a node takes from the machine that it runs on, beside its stores and its network.
#[derive(Clone)]
struct Means {
    clock: Clock,
    /// Work is done where it is asked for, and not on threads of its own.
    inline: bool,
    open_output: OpenOutput,
    open_place: OpenPlace,
    ask_members: AskMembers,
    /// What is done for the metrics from time to time.
    metrics_upkeep: MetricsUpkeep,
    /// Where it is noted what ended while the node goes on.
    endings: Endings,
}

/// See [`Means::metrics_upkeep`].
type MetricsUpkeep = Arc<dyn Fn(&PrometheusHandle) + Send + Sync>;

impl Default for Means {
    fn default() -> Self {
        Self {
            clock: Clock::default(),
            inline: false,
            ask_members: lookout::over_the_network(),
            open_output: Arc::new(|config, home, owner| open_store::open(config, home.path(), owner)),
            open_place: Arc::new(open_place),
            metrics_upkeep: Arc::new(PrometheusHandle::run_upkeep),
            endings: Endings::default(),
        }
    }
}

impl Means {
    fn verifier(
        &self,
        threads: usize,
        parts: VerifierParts,
    ) -> Result<(Verifier, Vec<std::thread::JoinHandle<()>>), NodeError> {
        if self.inline {
            return Ok((Verifier::inline(parts), Vec::new()));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Verifier::spawn(if threads == 0 { cores } else { threads }, parts)
    }

    fn signer(&self, key: &SigningKey) -> TaskSigner {
        if self.inline { TaskSigner::inline(key.clone()) } else { TaskSigner::new(key.clone()) }
    }
}

/// Raises the soft limit on open files to what the node would like, within the hard limit.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the struct above and nothing else.
    #[allow(unsafe_code)]
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < FILES_WANTED {
            limit.rlim_cur = FILES_WANTED.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// The process' metrics: one recorder, however many nodes a test starts in one process.
fn prometheus() -> Result<PrometheusHandle, NodeError> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let seconds = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
    let counts = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 2048.0];
    let matcher = |name: &str| metrics_exporter_prometheus::Matcher::Suffix(name.to_owned());
    let failed = |e: &dyn std::fmt::Display| NodeError::Config(format!("metrics cannot be set up: {e}"));
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(matcher("_seconds"), &seconds)
        .and_then(|builder| builder.set_buckets_for_metric(matcher("_messages"), &counts))
        .map_err(|e| failed(&e))?
        .install_recorder()
        .map_err(|e| failed(&e))?;
    Ok(HANDLE.get_or_init(|| handle).clone())
}

/// Whom this node can reach at first: the members of its own state, or those that it found when it joined, or those of
/// the genesis. What the log says later counts.
fn first_peers(opened: &Opened, stored: Option<&Members>) -> Result<Vec<Peer>, NodeError> {
    let peer = |(node, member): (NodeId, &Member)| -> Result<Peer, NodeError> {
        Ok(Peer {
            node,
            name: member.name.clone(),
            key: member.key()?,
            address: Some(member.p2p.clone()),
            incarnation: member.incarnation,
        })
    };
    match stored {
        Some(members) => Ok(peers::peers(members).into_values().collect()),
        None if opened.found.is_empty() => opened.genesis.nodes().map(peer).collect(),
        None => opened.found.iter().map(|(node, member)| peer((*node, member))).collect(),
    }
}

async fn bind_network(
    home: &Home,
    opened: &Opened,
    peers: Vec<Peer>,
) -> Result<(Network, Handle, GossipInbox), NodeError> {
    let network = opened.genesis.id()?;
    let incarnation = opened.store.incarnation();
    let mut options = NetworkOptions::new(opened.node_key.clone(), network, opened.epoch(), opened.node, incarnation);
    options.members = peers;
    options.listen = opened.config.p2p.listen.clone();
    options.advertise = opened.config.p2p.advertise.clone();
    options.bootstrap = opened.config.p2p.bootstrap.clone();
    options.gateways = opened.config.gateways.iter().map(GatewayConfig::address).collect();
    options.address_book = peers::read_book(&home.address_book());
    Ok(Network::bind(options).await?)
}

impl Node {
    /// Starts the node in `home`. When this returns its ports are open and it takes part in consensus.
    ///
    /// # Errors
    /// One sentence for the operator; nothing of the node is left running.
    pub fn start(home: &Home) -> BoxFuture<'_, Result<Self, NodeError>> {
        // Boxed, so that this crate compiles it, and not each program that awaits it.
        Box::pin(Self::start_with(home, Means::default()))
    }

    async fn start_with(home: &Home, means: Means) -> Result<Self, NodeError> {
        raise_file_limit();
        let opened = home.open()?;
        let state = StateStore::open(&opened.store)?;
        let stored = state.members(&opened.genesis.id()?)?;
        let prometheus = prometheus()?;
        let bound = bind_api(home.path(), &opened.config, opened.genesis.params.message_bytes_max)?;
        let first_peers = first_peers(&opened, stored.as_ref())?;
        let (network, handle, inbox) = bind_network(home, &opened, first_peers.clone()).await?;
        let mut supervisor = Supervisor::new(means.endings.clone());
        // The network ends last: consensus needs it to hand over.
        supervisor.spawn("the network", network.run(supervisor.token()));
        let (log, stored) = Self::fetch_lost_state(&opened, &handle, &state, stored).await?;
        let members = stored.map_or_else(|| Members::genesis(&opened.genesis), Ok)?;
        let admin = admin::bind(&home.admin_socket())?;
        let parts = Parts::start((home, opened), (handle, log), state, members, means).await?;
        let outputs = parts.start_publishers(&mut supervisor)?;
        let announcements = announce::start(&mut supervisor, &parts, &outputs).await?;
        parts.start_tasks(&mut supervisor, inbox, &outputs, first_peers)?;
        let administration = (Arc::new(admin), Arc::new(parts.desk(&outputs, supervisor.token())?));
        supervisor.spawn_restarted_from("administration", administration, |(listener, desk), stop| {
            admin::run_admin(listener, desk, stop)
        });
        let http = bound.local_addr();
        let upkeep = (prometheus.clone(), parts.means.metrics_upkeep.clone());
        supervisor.spawn_restarted_from("the metrics", upkeep, run_upkeep);
        let ports = parts.ports(&Arc::new(parts.reader(outputs, announcements, prometheus)))?;
        let (api_stop, api_ended) = (CancellationToken::new(), CancellationToken::new());
        let open = bound.open(ports, api_stop.clone());
        let gateways = Gateways::new(open.bundles(), &parts.opened.config.gateways);
        parts.network.serve_gateways(gateways).expect("a node serves each channel once");
        let (asked, ended, stop) = (api_stop.clone(), api_ended.clone().drop_guard(), supervisor.token());
        supervisor.spawn("the HTTP interface", async move {
            open.run().await;
            drop(ended);
            if asked.is_cancelled() {
                // It ends before the others do.
                stop.cancelled().await;
            }
        });
        tracing::info!(node = %parts.opened.node, network = parts.opened.genesis.network, %http, "started");
        let (node, key, members) = (parts.opened.node, parts.opened.node_key.clone(), parts.tracker.members());
        let Parts { consensus, network, ingress, verify_threads, .. } = parts;
        Ok(Self {
            node,
            key,
            members,
            supervisor,
            consensus,
            network,
            ingress,
            verify_threads,
            api_stop,
            api_ended,
            http,
        })
    }

    /// Fetches the state of a node whose own was damaged and whose log no longer makes it. Waits until a member gives it.
    async fn fetch_lost_state(
        opened: &Opened,
        network: &Handle,
        state: &StateStore,
        stored: Option<Members>,
    ) -> Result<(Arc<LogPositions>, Option<Members>), NodeError> {
        let Some((at_least, last)) = rebuild::wanted(&opened.store)? else {
            return Ok((Arc::default(), stored));
        };
        tracing::warn!("the state of this node was put aside: it is fetched from another member before anything else");
        let log = Arc::new(LogPositions { before: last, ..LogPositions::default() });
        network.set_log_view(log.clone());
        let others: Vec<NodeId> =
            network.peers().iter().map(|peer| peer.node).filter(|node| *node != opened.node).collect();
        fetch_state(state, Arc::new(NetworkTransport(network.clone())), &others, at_least).await;
        rebuild::done(&opened.store)?;
        Ok((log, state.members(&opened.genesis.id()?)?))
    }
}

impl Parts {
    async fn start(
        (home, opened): (&Home, Opened),
        (network, log): (Handle, Arc<LogPositions>),
        state: StateStore,
        members: Members,
        means: Means,
    ) -> Result<Self, NodeError> {
        BUILT_WITH.check_network(&opened.genesis.params)?;
        BUILT_WITH.check_config(&opened.config)?;
        let mempool = Mempool::new(opened.node, opened.config.pool_limits()).by_clock(means.clock.clone());
        let evidence = Arc::new(EvidenceQueue::default());
        let tracker = Arc::new(Tracker::new(
            mempool.clone(),
            state.clone(),
            evidence.clone(),
            members,
            Projects::new(&opened.genesis.params, state.projects()?),
        ));
        let ChainServices { chain, task_states, gateway, prover } =
            ChainServices::open(home, &opened, &state, &tracker)?;
        let rates = Arc::new(Rates::new(&opened.config.limits));
        let (verifier, verify_threads) = means.verifier(
            opened.config.pool.verify_threads,
            VerifierParts {
                node: opened.node,
                mempool: mempool.clone(),
                state: state.clone(),
                node_key: opened.node_key.clone(),
                members: tracker.members(),
                evidence: evidence.clone(),
                projects: tracker.projects(),
                rates: rates.clone(),
                head: tracker.head(),
                endings: means.endings.clone(),
            },
        )?;
        let consensus = Consensus::start(
            ConsensusOptions {
                node: opened.node,
                genesis: opened.genesis.clone(),
                epoch: opened.epoch(),
                store: opened.store.clone(),
                election_timeout_ms: opened.config.raft.election_timeout_ms,
                heartbeat_ms: opened.config.raft.heartbeat_ms,
                compaction: opened.config.raft.compaction(),
                rules_known: opened.config.upgrade.rules_known(),
            },
            Arc::new(NetworkTransport(network.clone())),
            state.clone(),
            tracker.clone(),
        )
        .await?;
        // Set before for a node that had to fetch its state.
        let _ = log.positions.set(consensus.positions());
        network.set_log_view(log);
        let hold = Duration::from_millis(opened.config.http.hold_ms);
        let conflicts = Conflicts::load(home.path(), opened.genesis.id()?, opened.epoch())?;
        conflicts.follow(&tracker.members().borrow());
        let ingress = Arc::new(Ingress::new(IngressParts {
            verifier: verifier.clone(),
            state: state.clone(),
            projects: tracker.projects(),
            rates,
            hold,
            conflict: conflicts.active(),
        }));
        let certifier = Certifier::new(CertifierParts {
            node: opened.node,
            epoch: opened.epoch(),
            key: opened.node_key.clone(),
            state: state.clone(),
            tracker: tracker.clone(),
            pledges: consensus.pledges().clone(),
            evidence,
        });
        let operator = Operator::new(OperatorParts {
            node: opened.node,
            genesis: opened.genesis.clone(),
            network_id: opened.genesis.id()?,
            epochs: opened.epochs.clone(),
            consensus: consensus.clone(),
            network: network.clone(),
            tracker: tracker.clone(),
        });
        let barriers = Barriers::new(consensus.clone(), network.clone());
        let documents = Arc::new(Documents::new(state.clone(), gateway));
        let home = home.clone();
        Ok(Self {
            opened,
            home,
            state,
            mempool,
            tracker,
            verifier,
            verify_threads,
            network,
            consensus,
            ingress,
            certifier,
            operator,
            barriers,
            conflicts,
            chain,
            task_states,
            documents,
            prover,
            clock_off: watch::Sender::new(None),
            not_forgetting: watch::Sender::new(None),
            held_back: watch::Sender::new(None),
            means,
        })
    }
}

impl Node {
    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Runs until `stop` is cancelled, then stops in order: no new work, running requests answered, the lead handed
    /// over, consensus stopped, the store written.
    ///
    /// # Errors
    /// If a part without which the node cannot go on has failed.
    pub fn run(self, stop: CancellationToken) -> BoxFuture<'static, Result<(), NodeError>> {
        Box::pin(self.run_until(stop))
    }

    async fn run_until(mut self, stop: CancellationToken) -> Result<(), NodeError> {
        let mut status = self.consensus.status();
        let ingress = self.ingress.clone();
        let departed = peers::departed(self.node, self.key.clone(), self.members.clone(), move || ingress.stop());
        let mut result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = departed => Err(NodeError::Config(
                "this node was removed from the network; its home can be put away. To come back, join with a new home (`lockstep init --join`)".into(),
            )),
            reason = stopped(&mut status) => Err(NodeError::Stopped { part: "consensus".to_owned(), reason }),
            error = self.supervisor.ended() => Err(error),
        };
        if result.is_err() {
            // Other parts end because consensus has: its reason is the one to tell.
            if let Ok(reason) = tokio::time::timeout(REASON_TIMEOUT, stopped(&mut status)).await {
                result = Err(NodeError::Stopped { part: "consensus".to_owned(), reason });
            }
        }
        self.ingress.stop();
        if result.is_ok() {
            tracing::info!("stopping: new messages are refused, running requests are answered");
            self.hand_over().await;
        }
        self.api_stop.cancel();
        self.api_ended.cancelled().await;
        self.consensus.shutdown().await;
        self.supervisor.stop(STOP_TIMEOUT).await;
        // With the last user of the verifier its threads end, and with them the last users of the store.
        drop(self.ingress);
        let ended = tokio::task::spawn_blocking(move || {
            for thread in self.verify_threads {
                // Whatever panicked there was noted when it did.
                let _ = thread.join();
            }
        });
        if tokio::time::timeout(VERIFY_STOP_TIMEOUT, ended).await.is_err() {
            tracing::warn!("verification threads did not end in time");
        }
        result
    }

    /// Lets another voter lead before this one goes, so that the network is hardly ever without a leader.
    async fn hand_over(&self) {
        let mut status = self.consensus.status();
        if status.borrow().role != Role::Leader {
            return;
        }
        let connected: Vec<NodeId> =
            self.network.peers().iter().filter(|peer| peer.connected).map(|peer| peer.node).collect();
        if let Some(successor) = self.consensus.hand_over(&connected).await {
            let gone = status.wait_for(|status| status.role != Role::Leader && status.leader.is_some());
            match tokio::time::timeout(HAND_OVER_TIMEOUT, gone).await {
                Ok(_) => tracing::info!(%successor, "the lead was handed over"),
                Err(_) => tracing::warn!(%successor, "the lead was not taken over in time; an election follows"),
            }
        }
    }
}

/// Waits until consensus has stopped by itself, and says why.
async fn stopped(status: &mut watch::Receiver<lockstep_consensus::RaftStatus>) -> String {
    match status.wait_for(|status| status.stopped.is_some()).await {
        Ok(status) => status.stopped.clone().unwrap_or_default(),
        Err(_) => "its task is gone".into(),
    }
}

async fn run_upkeep((handle, upkeep): (PrometheusHandle, MetricsUpkeep), stop: CancellationToken) {
    loop {
        upkeep(&handle);
        if tokio::time::timeout(METRICS_UPKEEP, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}
