//! What a node's parts do together: the tasks that run, the outputs that are fed, the doors' ports.

use std::sync::Arc;

use lockstep_api::{Feed, Ports, Read};
use lockstep_network::{Channel, GossipInbox, Peer};
use lockstep_outputs::{Options as PublisherOptions, ProgressSink, Publisher, TaskSigner};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::Desk;
use crate::adopt::Adopter;
use crate::announce::Announcements;
use crate::audit::{AuditParts, Audits};
use crate::backup::Backups;
use crate::chain;
use crate::clock_guard::ClockGuard;
use crate::config::Scope;
use crate::control::ControlService;
use crate::error::NodeError;
use crate::forward::{run_forwarder, run_gossip};
use crate::gaps::{GapWatch, Seen};
use crate::inbound::{BundleService, RaftService, SnapshotService, run_gossip_inbox};
use crate::lookout::Lookout;
use crate::output_desk::{OutputDesk, OutputSwitch, follow_pauses};
use crate::peers;
use crate::progress::{CursorFile, LogSink, NoSink};
use crate::proofs::History;
use crate::proposer::Proposer;
use crate::publish::{RunningOutput, StateSource};
use crate::reader::Reader;
use crate::refill::{RefillParts, Refills};
use crate::registry::Orders;
use crate::retention::Retention;
use crate::sealed::Sealing;
use crate::secrets::ServerSecrets;
use crate::steer::Steward;
use crate::supervisor::Supervisor;
use crate::turns::Turns;

use super::Parts;

impl Parts {
    pub(super) fn start_tasks(
        &self,
        supervisor: &mut Supervisor,
        inbox: GossipInbox,
        outputs: &[RunningOutput],
        first_peers: Vec<Peer>,
    ) -> Result<(), NodeError> {
        let token = supervisor.token();
        let serve_raft = self.network.serve(Channel::Raft, RaftService { consensus: self.consensus.clone() });
        let serve_bundles = self.network.serve(Channel::Bundle, BundleService { verifier: self.verifier.clone() });
        let rules_known = self.opened.config.upgrade.rules_max;
        let control = ControlService {
            consensus: self.consensus.clone(),
            certifier: self.certifier.clone(),
            operator: self.operator.clone(),
            orders: self.orders()?,
            conflicts: self.conflicts.clone(),
            chain: self.chain.clone(),
            members: self.tracker.members(),
            rules_known,
            outputs: self.opened.config.network_outputs().collect(),
        };
        let serve_control = self.network.serve(Channel::Control, control);
        let serve_join = self.network.serve_join(self.operator.clone());
        let steward = Steward {
            node: self.opened.node,
            state: self.state.clone(),
            consensus: self.consensus.clone(),
            network: self.network.clone(),
            tracker: self.tracker.clone(),
            certifier: self.certifier.clone(),
            rules_known,
            conflicts: self.conflicts.clone(),
            seen: Arc::default(),
        };
        let retention = Retention {
            state: self.state.clone(),
            consensus: self.consensus.clone(),
            tracker: self.tracker.clone(),
            limits: self.opened.genesis.params.retention,
            outputs: self
                .opened
                .config
                .outputs
                .iter()
                .zip(outputs)
                .map(|(c, o)| (c.scope, o.name.clone(), o.handle.clone()))
                .collect(),
            first_task: self.opened.genesis.params.first_task_number,
            held_back: self.held_back.clone(),
        };
        supervisor.spawn("retention", retention.run(token.clone()));
        supervisor.spawn("evidence", self.certifier.clone().run(self.verifier.clone(), token.clone()));
        supervisor.spawn("certification", steward.clone().run_certification(token.clone()));
        supervisor.spawn("the leader's duties", steward.run_duties(token.clone()));
        let clock_guard = ClockGuard {
            node: self.opened.node,
            consensus: self.consensus.clone(),
            network: self.network.clone(),
            tracker: self.tracker.clone(),
            off: self.clock_off.clone(),
        };
        supervisor.spawn("the clock guard", clock_guard.run(token.clone()));
        chain::start(supervisor, self);
        let (own, members) = (self.opened.node, self.tracker.members());
        let book = peers::run_book(self.network.clone(), self.home.address_book(), token.clone());
        supervisor.spawn("the address book", book);
        let (named, found) = mpsc::channel(1);
        let lookout = Lookout {
            node: own,
            key: self.opened.node_key.clone(),
            members: members.clone(),
            status: self.consensus.status(),
            ask: self.means.ask_members.clone(),
            found: named,
        };
        supervisor.spawn("the lookout", lookout.run(token.clone()));
        let follow_members = peers::run_peers(own, first_peers, members, self.network.clone(), found, token.clone());
        supervisor.spawn("members", follow_members);
        let serve_snapshots =
            self.network.serve(Channel::Snapshot, SnapshotService { consensus: self.consensus.clone() });
        for served in [serve_raft, serve_bundles, serve_control, serve_join, serve_snapshots] {
            served.expect("a node serves each channel once");
        }
        let (consensus, stop) = (self.consensus.clone(), token.clone());
        supervisor.spawn("compaction", async move { consensus.run_compaction(stop).await });
        let proposer = Proposer {
            mempool: self.mempool.clone(),
            consensus: self.consensus.clone(),
            tracker: self.tracker.clone(),
            projects: self.tracker.projects(),
            conflict: self.conflicts.active(),
        };
        supervisor.spawn("the proposer", proposer.run(token.clone()));
        let forwarder = run_forwarder(
            self.opened.node,
            self.mempool.clone(),
            self.consensus.clone(),
            self.network.clone(),
            token.clone(),
        );
        supervisor.spawn("the forwarder", forwarder);
        let delay_ms = self.opened.config.p2p.gossip_delay_ms;
        supervisor.spawn("gossip", run_gossip(self.mempool.clone(), self.network.clone(), delay_ms, token.clone()));
        supervisor.spawn("the gossip inbox", run_gossip_inbox(inbox, self.verifier.clone(), token));
        Ok(())
    }

    pub(super) fn start_publishers(&self, supervisor: &mut Supervisor) -> Result<Vec<RunningOutput>, NodeError> {
        let owner = self.opened.owner()?;
        let shared = (self.consensus.clone(), self.network.clone(), self.tracker.clone());
        let turns = Turns::new(self.opened.node, shared, self.opened.config.network_outputs());
        let always = watch::channel(true).1;
        let mut running = Vec::new();
        for config in &self.opened.config.outputs {
            let output = (self.means.open_output)(config, &self.home, owner)?;
            let (paused, marker) = OutputSwitch::was_paused(&self.home, config, &self.tracker);
            let sink: Arc<dyn ProgressSink> = match config.scope {
                Scope::Network => {
                    let (consensus, network) = (self.consensus.clone(), self.network.clone());
                    Arc::new(LogSink { consensus, network, tracker: self.tracker.clone() })
                }
                Scope::Node if output.keeps_cursor() => Arc::new(NoSink),
                Scope::Node => Arc::new(CursorFile::new(self.home.path(), &config.name, owner.epoch)),
            };
            let (publisher, handle) = Publisher::new(PublisherOptions {
                name: config.name.clone(),
                owner,
                output,
                source: Arc::new(self.source()),
                sink,
                signer: self.means.signer(&self.opened.task_key),
                newest: self.tracker.newest_task(),
                active: turns.of(&config.name).unwrap_or_else(|| always.clone()),
                paused: paused.subscribe(),
                projects: config.projects.clone(),
                recorded: self.tracker.progress().get(&config.name).copied(),
            });
            supervisor.spawn("a publisher", publisher.run(supervisor.token()));
            let (name, bell) = (config.name.clone(), Arc::new(Notify::new()));
            let seen = watch::Sender::new(Seen { next: owner.first_task_number, gaps: Vec::new() });
            let missing = seen.subscribe();
            let watch = GapWatch {
                name: name.clone(),
                // A connection of its own, so that a look at many numbers does not hold up publishing.
                output: (self.means.open_output)(config, &self.home, owner)?,
                head: self.tracker.head(),
                publisher: handle.clone(),
                bell: bell.clone(),
                seen,
            };
            supervisor.spawn("gaps", watch.run(supervisor.token()));
            let switch = OutputSwitch::new(config, handle.clone(), (paused, marker));
            let projects = config.projects.clone();
            running.push(RunningOutput { name, projects, handle, missing, bell, switch });
        }
        supervisor.spawn("turns", turns.run(supervisor.token()));
        let switches = running.iter().map(|output: &RunningOutput| output.switch.clone()).collect();
        let pauses = follow_pauses(switches, self.tracker.clone(), supervisor.token());
        supervisor.spawn("pauses", pauses);
        Ok(running)
    }

    /// Final tasks, as the outputs get them.
    fn source(&self) -> StateSource {
        let (genesis, epochs) = (self.opened.genesis.clone(), self.opened.epochs.clone());
        StateSource {
            state: self.state.clone(),
            newest: self.tracker.newest_task(),
            head: self.tracker.head(),
            history: History { genesis, epochs },
        }
    }

    pub(super) fn desk(&self, outputs: &[RunningOutput], stop: CancellationToken) -> Result<Desk, NodeError> {
        let opened = &self.opened;
        let (genesis, epochs) = (opened.genesis.clone(), opened.epochs.clone());
        let refills = Refills::new(RefillParts {
            home: self.home.clone(),
            outputs: opened.config.outputs.clone(),
            bells: outputs.iter().map(|output| (output.name.clone(), output.bell.clone())).collect(),
            owner: opened.owner()?,
            genesis: genesis.clone(),
            epochs: epochs.clone(),
            state: self.state.clone(),
            store: opened.store.clone(),
            signer: TaskSigner::new(opened.task_key.clone()),
            stop: stop.clone(),
        });
        let audits = Audits::new(AuditParts {
            home: self.home.clone(),
            outputs: opened.config.outputs.clone(),
            owner: opened.owner()?,
            source: Arc::new(self.source()),
            newest: self.tracker.newest_task(),
            signer: TaskSigner::new(opened.task_key.clone()),
            places: Arc::new(self.state.clone()),
            stop,
        });
        Ok(Desk {
            operator: self.operator.clone(),
            refills,
            audits,
            outputs: OutputDesk {
                switches: outputs.iter().map(|output| output.switch.clone()).collect(),
                tracker: self.tracker.clone(),
                consensus: self.consensus.clone(),
                network: self.network.clone(),
            },
            backups: Backups::new(self.state.clone(), opened.store.clone(), genesis, epochs.clone()),
            adopter: Adopter {
                home: self.home.clone(),
                outputs: opened.config.outputs.clone(),
                owner: opened.owner()?,
                epochs,
            },
        })
    }

    pub(super) fn orders(&self) -> Result<Orders, NodeError> {
        Ok(Orders {
            network_id: self.opened.genesis.id()?,
            epoch: self.opened.epoch(),
            consensus: self.consensus.clone(),
            network: self.network.clone(),
            tracker: self.tracker.clone(),
            state: self.state.clone(),
        })
    }

    /// What the doors serve.
    pub(super) fn ports(&self, reader: &Arc<Reader>) -> Result<Ports, NodeError> {
        let (read, feed): (Arc<dyn Read>, Arc<dyn Feed>) = (reader.clone(), reader.clone());
        let sealing = Sealing {
            secrets: ServerSecrets::read(self.home.path(), self.opened.config.devices.server_secret_curve)?
                .map(Arc::new),
            ingress: self.ingress.clone(),
            state: self.state.clone(),
            documents: self.documents.clone(),
            verifier: self.verifier.clone(),
            read: read.clone(),
            prover: self.prover.clone(),
        };
        let registry = Arc::new(self.orders()?);
        let prover = self.prover.clone();
        Ok(Ports { submit: self.ingress.clone(), read, sealed: Arc::new(sealing), registry, feed, prover })
    }

    pub(super) fn reader(
        &self,
        outputs: Vec<RunningOutput>,
        announcements: Option<Announcements>,
        prometheus: PrometheusHandle,
    ) -> Reader {
        Reader {
            genesis: self.opened.genesis.clone(),
            epochs: self.opened.epochs.clone(),
            node: self.opened.node,
            key: self.opened.node_key.public(),
            state: self.state.clone(),
            consensus: self.consensus.clone(),
            network: self.network.clone(),
            tracker: self.tracker.clone(),
            mempool: self.mempool.clone(),
            ingress: self.ingress.clone(),
            operator: self.operator.clone(),
            certifier: self.certifier.clone(),
            chain: self.chain.clone(),
            task_states: self.task_states.clone(),
            clock_off: self.clock_off.subscribe(),
            held_back: self.held_back.subscribe(),
            outputs,
            announcements,
            prometheus,
            task_key: Arc::new(self.opened.task_key.clone()),
        }
    }
}
