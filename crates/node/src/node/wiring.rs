//! What a node's parts do together: the tasks that run, the outputs that are fed, the doors' ports.

use std::sync::Arc;

use lockstep_api::{Feed, Ports, Read};
use lockstep_network::{Channel, GossipInbox, Peer};
use lockstep_outputs::publisher::Slot;
use lockstep_outputs::{Options as PublisherOptions, Output, ProgressSink, TaskSigner};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::Desk;
use crate::adopt::Adopter;
use crate::announce::Announcements;
use crate::audit::{AuditParts, Audits};
use crate::backup::{BackupParts, Backups};
use crate::chain;
use crate::clock_guard::ClockGuard;
use crate::config::{OutputConfig, Scope};
use crate::control::ControlService;
use crate::endings::EndReason;
use crate::error::NodeError;
use crate::forward::{run_forwarder, run_gossip};
use crate::gaps::{GapWatch, Seen};
use crate::inbound::{BundleService, RaftService, SnapshotService, run_gossip_inbox};
use crate::lookout::Lookout;
use crate::output_desk::{OutputDesk, OutputSwitch, follow_pauses};
use crate::output_views::OutputViews;
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
            barriers: self.barriers.clone(),
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
            complaint: self.not_forgetting.clone(),
            held_back: self.held_back.clone(),
        };
        supervisor.spawn_restarted_from("retention", retention, Retention::run);
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
        let book = (self.network.clone(), self.home.address_book(), self.state.blocking());
        supervisor.spawn_restarted_from("the address book", book, |(network, path, blocking), stop| {
            peers::run_book(network, path, blocking, stop)
        });
        let (named, found) = mpsc::channel(1);
        let lookout = Lookout {
            node: own,
            key: self.opened.node_key.clone(),
            members: members.clone(),
            status: self.consensus.status(),
            ask: self.means.ask_members.clone(),
            found: named,
        };
        supervisor.spawn_restarted_from("the lookout", lookout, Lookout::run);
        let follow_members = peers::run_peers(own, first_peers, members, self.network.clone(), found, token.clone());
        supervisor.spawn("members", follow_members);
        let serve_snapshots =
            self.network.serve(Channel::Snapshot, SnapshotService { consensus: self.consensus.clone() });
        for served in [serve_raft, serve_bundles, serve_control, serve_join, serve_snapshots] {
            served.expect("a node serves each channel once");
        }
        let (consensus, stop) = (self.consensus.clone(), token.clone());
        supervisor.spawn("compaction", async move { consensus.run_compaction(stop).await });
        let (consensus, stop) = (self.consensus.clone(), token.clone());
        supervisor.spawn("the pulse of consensus", async move { consensus.run_pulse(stop).await });
        let proposer = Proposer {
            mempool: self.mempool.clone(),
            consensus: self.consensus.clone(),
            groups: self.tracker.groups(),
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
        let shared = (self.consensus.clone(), self.network.clone(), self.tracker.clone());
        let turns = Turns::new(self.opened.node, shared, self.opened.config.network_outputs());
        let always = watch::channel(true).1;
        let mut running: Vec<RunningOutput> = Vec::new();
        for config in &self.opened.config.outputs {
            let active = turns.of(&config.name).unwrap_or_else(|| always.clone());
            running.push(self.start_output(supervisor, config, active)?);
        }
        supervisor.spawn_restarted_from("the turns of outputs", turns, Turns::run);
        let switches: Vec<OutputSwitch> = running.iter().map(|output| output.switch.clone()).collect();
        let pauses = (switches, self.tracker.clone());
        supervisor.spawn_restarted_from("the pauses of outputs", pauses, |(switches, tracker), stop| {
            follow_pauses(switches, tracker, stop)
        });
        Ok(running)
    }

    /// Feeds one output, and looks after its gaps. Both begin again over a store that is opened anew.
    fn start_output(
        &self,
        supervisor: &mut Supervisor,
        config: &OutputConfig,
        active: watch::Receiver<bool>,
    ) -> Result<RunningOutput, NodeError> {
        let (name, owner) = (config.name.clone(), self.opened.owner()?);
        let (paused, marker) = OutputSwitch::was_paused(&self.home, config, &self.tracker);
        let mut slot = Slot::default();
        let handle = slot.handle(owner, self.tracker.newest_task());
        let options = self.publisher_options(config, active, paused.subscribe())?;
        let options: Arc<dyn Fn(Arc<dyn Output>) -> PublisherOptions + Send + Sync> = Arc::new(options);
        let open = self.opener(config)?;
        // What is wrong with the configuration is told at start.
        let mut first = Some(open()?);
        let stop = supervisor.token();
        supervisor.spawn_restarted(format!("the publisher of output {name}"), {
            let open = open.clone();
            move |before: Option<&EndReason>| {
                if let Some(reason) = before {
                    slot.broke_off(&reason.to_string());
                }
                let (first, open, options) = (first.take(), open.clone(), options.clone());
                let (slot, stop) = (slot.clone(), stop.clone());
                async move {
                    let output = first.map_or_else(open, Ok)?;
                    slot.publisher(options(output)).run(stop).await;
                    Ok(())
                }
            }
        });
        let bell = Arc::new(Notify::new());
        let seen = watch::Sender::new(Seen { next: owner.first_task_number, gaps: Vec::new() });
        let missing = seen.subscribe();
        // A connection of its own, so that a look at many numbers does not hold up publishing.
        let mut first = Some(open()?);
        supervisor.spawn_restarted(format!("the gaps of output {name}"), {
            let (head, publisher, stop) = (self.tracker.head(), handle.clone(), supervisor.token());
            let (name, bell) = (name.clone(), bell.clone());
            move |_: Option<&EndReason>| {
                let (first, open, stop) = (first.take(), open.clone(), stop.clone());
                let (name, head, publisher) = (name.clone(), head.clone(), publisher.clone());
                let (bell, seen) = (bell.clone(), seen.clone());
                async move {
                    let output = first.map_or_else(open, Ok)?;
                    GapWatch { name, output, head, publisher, bell, seen }.run(stop).await;
                    Ok(())
                }
            }
        });
        let switch = OutputSwitch::new(config, handle.clone(), (paused, marker));
        Ok(RunningOutput { name, projects: config.projects.clone(), handle, missing, bell, switch })
    }

    /// Opens the store of an output, as often as it is called.
    fn opener(
        &self,
        config: &OutputConfig,
    ) -> Result<impl Fn() -> Result<Arc<dyn Output>, NodeError> + Clone + Send + Sync + use<>, NodeError> {
        let (open, config, home) = (self.means.open_output.clone(), config.clone(), self.home.clone());
        let owner = self.opened.owner()?;
        Ok(move || open(&config, &home, owner))
    }

    /// What the publishers of an output are made of, each with the store that is given.
    fn publisher_options(
        &self,
        config: &OutputConfig,
        active: watch::Receiver<bool>,
        paused: watch::Receiver<bool>,
    ) -> Result<impl Fn(Arc<dyn Output>) -> PublisherOptions + Send + Sync + use<>, NodeError> {
        let owner = self.opened.owner()?;
        let (name, projects, scope) = (config.name.clone(), config.projects.clone(), config.scope);
        let (consensus, network, tracker) = (self.consensus.clone(), self.network.clone(), self.tracker.clone());
        let (source, home, blocking) = (Arc::new(self.source()), self.home.clone(), self.state.blocking());
        let (signer, newest) = (self.means.signer(&self.opened.task_key), self.tracker.newest_task());
        Ok(move |output: Arc<dyn Output>| {
            let sink: Arc<dyn ProgressSink> = match scope {
                Scope::Network => {
                    let (consensus, network) = (consensus.clone(), network.clone());
                    Arc::new(LogSink { consensus, network, tracker: tracker.clone() })
                }
                Scope::Node if output.keeps_cursor() => Arc::new(NoSink),
                Scope::Node => Arc::new(CursorFile::new(home.path(), &name, owner.epoch, blocking)),
            };
            PublisherOptions {
                name: name.clone(),
                owner,
                output,
                source: source.clone(),
                sink,
                signer: signer.clone(),
                newest: newest.clone(),
                active: active.clone(),
                paused: paused.clone(),
                projects: projects.clone(),
                recorded: tracker.progress().get(&name).copied(),
            }
        })
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
        let refills = RefillParts {
            home: self.home.clone(),
            outputs: opened.config.outputs.clone(),
            open: self.means.open_output.clone(),
            open_place: self.means.open_place.clone(),
            bells: outputs.iter().map(|output| (output.name.clone(), output.bell.clone())).collect(),
            owner: opened.owner()?,
            genesis: genesis.clone(),
            epochs: epochs.clone(),
            state: self.state.clone(),
            store: opened.store.clone(),
            signer: TaskSigner::new(opened.task_key.clone()),
        };
        let audits = AuditParts {
            home: self.home.clone(),
            outputs: opened.config.outputs.clone(),
            open: self.means.open_output.clone(),
            owner: opened.owner()?,
            source: Arc::new(self.source()),
            newest: self.tracker.newest_task(),
            signer: TaskSigner::new(opened.task_key.clone()),
            places: Arc::new(self.state.clone()),
        };
        let backups = BackupParts {
            state: self.state.clone(),
            store: opened.store.clone(),
            genesis,
            epochs: epochs.clone(),
            open: self.means.open_place.clone(),
        };
        let endings = &self.means.endings;
        Ok(Desk {
            operator: self.operator.clone(),
            refills: Refills::new(refills, endings.clone(), stop.clone()),
            audits: Audits::new(audits, endings.clone(), stop.clone()),
            outputs: OutputDesk {
                switches: outputs.iter().map(|output| output.switch.clone()).collect(),
                tracker: self.tracker.clone(),
                consensus: self.consensus.clone(),
                network: self.network.clone(),
            },
            backups: Backups::new(backups, endings.clone(), stop),
            adopter: Adopter {
                home: self.home.clone(),
                outputs: opened.config.outputs.clone(),
                open: self.means.open_output.clone(),
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
        let outputs: Arc<[RunningOutput]> = outputs.into();
        let first_task = self.opened.genesis.params.first_task_number;
        let output_views = OutputViews::new(outputs.clone(), self.state.clone(), self.tracker.clone(), first_task);
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
            barriers: self.barriers.clone(),
            certifier: self.certifier.clone(),
            chain: self.chain.clone(),
            task_states: self.task_states.clone(),
            clock_off: self.clock_off.subscribe(),
            endings: self.means.endings.clone(),
            not_forgetting: self.not_forgetting.subscribe(),
            held_back: self.held_back.subscribe(),
            outputs,
            output_views,
            announcements,
            prometheus,
            task_key: Arc::new(self.opened.task_key.clone()),
        }
    }
}
