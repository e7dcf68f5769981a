//! What orders of projects' owners, and what was read from a chain, do.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_rules::RulesError;
use lockstep_types::genesis::RETRY_WINDOW_FOR_EVER_MS;
use lockstep_types::registry::ChainUpdate;
use lockstep_types::{
    Address, ChainEvent, DeviceEntry, Epoch, NetworkId, NodeId, Order, OrderKind, ProjectId, ProjectSettings,
    RulesOrder, Signature, SignedOrder, TimeMs,
};

use super::{Applied, ApplyError, History, Ledger};
use crate::devices::{ChainCursor, Device, Document, Grant};
use crate::effects::Effects;
use crate::projects::{PROJECTS_MAX, Project, Projects};
use crate::rules::{self, RulesFrom, compile_rules};

/// Longest life of an order, so that an old one does not lie in wait.
pub const ORDER_LIFE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// Why an order is not carried out. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The network has no such project.
    #[error("project {0} is not registered in this network: a majority of its operators can register it")]
    UnknownProject(ProjectId),
    /// Nobody can order anything for it.
    #[error("project {0} has no owner: a majority of the network's operators can name one")]
    NoOwner(ProjectId),
    /// Whoever signed is not the owner.
    #[error("the order is not signed by the project's owner {0}")]
    Signer(Address),
    /// It was carried out already, or made for another state.
    #[error(
        "the order has number {found} of epoch {found_epoch}, the next one is number {expected} of epoch {epoch}: sign it again"
    )]
    Stale {
        /// Its number.
        found: u64,
        /// Its epoch.
        found_epoch: u64,
        /// The number that would count.
        expected: u64,
        /// The epoch that would count.
        epoch: u64,
    },
    /// Its time is over, or too far away.
    #[error("the order has expired, or expires more than seven days from now: sign it again")]
    Expired,
    /// Somebody else looks after the device.
    #[error("device {device} was registered by {by}, who alone can change or remove it")]
    OthersDevice {
        /// The device.
        device: Address,
        /// Who registered it.
        by: Address,
    },
    /// A chain says which devices there are.
    #[error("devices of this network come from a chain: register {0} there; the owner can list it without a document")]
    FromChain(Address),
    /// There is nothing to revoke.
    #[error("device {0} is not registered, or not by this project's owner")]
    NotRegistered(Address),
    /// The rules that it brings cannot be used.
    #[error("{0}")]
    ProjectRules(RulesError),
    /// No project of this network can have rules.
    #[error("this network has no rules of projects: its genesis says so (rules_fuel_per_second is 0)")]
    NoRules,
    /// Too many of the project's rules wait for their batches.
    #[error("32 rules of this project hold or wait for their batches already: let some of them begin first")]
    RulesAhead,
    /// Nonces that were not kept would pass again.
    #[error("strict_nonces cannot be switched off")]
    StrictNonces,
    /// The network forgets messages within the retry window.
    #[error(
        "retry_window_ms must be at most {0}, since this network forgets messages by age, or {RETRY_WINDOW_FOR_EVER_MS}: \
         for as long as messages are kept"
    )]
    Window(u64),
}

/// Why an update from a chain does not count. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainRefusal {
    /// The network has no source on a chain.
    #[error("this network reads no chain")]
    NoChain,
    /// Another block is the next one.
    #[error("the update begins with block {found}, the next one is {expected}")]
    NotNext {
        /// Its first block.
        found: u64,
        /// The next block.
        expected: u64,
    },
    /// The chain has changed below what was read.
    #[error("block {0} is not the one that was read before: the chain was reorganised deeper than the confirmations")]
    Reorganised(u64),
    /// Too few voters have read the same.
    #[error("{found} voters have read the same, {needed} are needed")]
    Attestations {
        /// How many have.
        found: u64,
        /// How many must.
        needed: u64,
    },
}

impl Projects {
    /// Whether an order would be carried out, as far as its project tells. Costs one signature recovery. Whether rules that
    /// it brings can be used is for [`compile_rules`] to say, which takes longer.
    ///
    /// # Errors
    /// Says why not.
    pub fn check_order(
        &self,
        signed: &SignedOrder,
        (network, epoch): (&NetworkId, Epoch),
        now: TimeMs,
    ) -> Result<(), OrderError> {
        let order = &signed.order;
        let project = self.get(order.project).ok_or(OrderError::UnknownProject(order.project))?;
        let owner = project.owner.ok_or(OrderError::NoOwner(order.project))?;
        // First of all, so that strangers learn and cause nothing.
        if signed.signer(network) != Some(owner) {
            return Err(OrderError::Signer(owner));
        }
        if order.number != project.orders + 1 || order.epoch != epoch {
            return Err(OrderError::Stale {
                found: order.number,
                found_epoch: order.epoch.0,
                expected: project.orders + 1,
                epoch: epoch.0,
            });
        }
        if order.expires_ms <= now || order.expires_ms.0 - now.0 > ORDER_LIFE_MS_MAX {
            return Err(OrderError::Expired);
        }
        match &order.kind {
            OrderKind::Settings(settings) if project.settings.strict_nonces && !settings.strict_nonces => {
                Err(OrderError::StrictNonces)
            }
            OrderKind::Settings(settings) if !self.params().keeps_window(settings.retry_window_ms) => {
                Err(OrderError::Window(self.params().retry_window_ms_max().unwrap_or_default()))
            }
            // Before anything of them is read: a program without rules has to say the same.
            OrderKind::Rules(_) if !self.params().allows_rules() => Err(OrderError::NoRules),
            _ => Ok(()),
        }
    }
}

impl Ledger {
    /// [`Projects::check_order`] by the state now and the clock `now`.
    ///
    /// # Errors
    /// Says why not.
    pub fn check_order(&self, signed: &SignedOrder, now: TimeMs) -> Result<(), OrderError> {
        let history = (&self.network, self.epoch);
        self.projects.check_order(signed, history, now.max(self.head.time_ms))
    }

    pub(super) fn apply_order<V: History>(
        &mut self,
        view: &V,
        time_ms: TimeMs,
        signed: SignedOrder,
    ) -> Result<Applied, ApplyError<V::Error>> {
        let (project, number) = (signed.order.project, signed.order.number);
        let (applied, verdict) = match self.carry_out(view, time_ms, signed)? {
            Ok(effects) => (self.roll(effects), Ok(())),
            Err(reason) => (Applied::default(), Err(reason)),
        };
        Ok(Applied { order: Some((project, number, verdict)), ..applied })
    }

    /// The effects of an order; a refusal changes nothing.
    fn carry_out<V: History>(
        &mut self,
        view: &V,
        time_ms: TimeMs,
        signed: SignedOrder,
    ) -> Result<Result<Effects, OrderError>, ApplyError<V::Error>> {
        let now = time_ms.max(self.head.time_ms);
        if let Err(reason) = self.check_order(&signed, now) {
            return Ok(Err(reason));
        }
        let Order { project: id, kind, .. } = signed.order;
        let Some(mut project) = self.projects.get(id).cloned() else { return Ok(Err(OrderError::UnknownProject(id))) };
        let mut changes =
            Changes { view, chain: self.projects.params().chain.is_some(), now, effects: Effects::default() };
        let owner = project.owner.unwrap_or_default();
        let done = match kind {
            OrderKind::Settings(settings) => {
                project.settings = settings;
                Ok(())
            }
            OrderKind::Owner(new) => {
                project.owner = Some(new);
                Ok(())
            }
            OrderKind::AddDevices(entries) => changes.add(id, owner, entries)?,
            OrderKind::RemoveDevices(devices) => {
                changes.remove(id, owner, devices)?;
                Ok(())
            }
            OrderKind::RevokeTokens(devices) => changes.revoke(id, owner, devices)?,
            OrderKind::Rules(RulesOrder { bundle, from }) => {
                let compiled = bundle.map(|bundle| compile_rules(&bundle).map(|(hash, rules)| (hash, rules, bundle)));
                compiled.transpose().map_err(OrderError::ProjectRules).and_then(|compiled| {
                    let from = from.max(self.head.height.next());
                    let hash = compiled.as_ref().map(|(hash, ..)| *hash);
                    if !rules::add(&mut project.rules, RulesFrom { from, hash }, self.head.height) {
                        return Err(OrderError::RulesAhead);
                    }
                    if let Some((hash, compiled, bundle)) = compiled {
                        changes.effects.bundle(hash, Some(bundle));
                        self.projects.keep_rules(hash, compiled);
                    }
                    Ok(())
                })
            }
        };
        if let Err(reason) = done {
            return Ok(Err(reason));
        }
        let mut effects = changes.effects;
        project.orders += 1;
        effects.project(id, &project);
        self.projects.set(id, project);
        // Those of the newest batch too: its open groups become tasks by them.
        for hash in self.projects.forget_rules(self.head.height) {
            effects.bundle(hash, None);
        }
        Ok(Ok(effects))
    }

    /// A majority of voters has named a project's owner.
    pub(super) fn grant_project(&mut self, id: ProjectId, owner: Address, effects: &mut Effects) {
        let known = self.projects.get(id).cloned();
        if known.is_none() && self.projects.count() >= PROJECTS_MAX {
            return;
        }
        let mut project = known.unwrap_or_else(|| Project {
            owner: None,
            orders: 0,
            settings: ProjectSettings { devices: None, ..self.projects.params().default_project.clone() },
            rules: Vec::new(),
        });
        project.owner = Some(owner);
        effects.project(id, &project);
        self.projects.set(id, project);
    }

    /// The block that must be read next, where the network reads a chain.
    pub fn next_block(&self) -> Option<u64> {
        let source = self.projects.params().chain.as_ref()?;
        Some(self.chain.map_or(source.start_block, |cursor| cursor.last.saturating_add(1)))
    }

    /// How far the chain was read.
    pub fn chain(&self) -> Option<ChainCursor> {
        self.chain
    }

    fn check_chain(&self, update: &ChainUpdate, signatures: &BTreeMap<NodeId, Signature>) -> Result<(), ChainRefusal> {
        let source = self.projects.params().chain.as_ref();
        let source = source.ok_or(ChainRefusal::NoChain)?;
        let expected = self.next_block().unwrap_or_default();
        if update.first != expected || update.last < update.first {
            return Err(ChainRefusal::NotNext { found: update.first, expected });
        }
        if let Some(cursor) = self.chain.filter(|cursor| cursor.last_hash != update.parent_hash) {
            return Err(ChainRefusal::Reorganised(cursor.last));
        }
        let digest = update.digest(&self.network, self.epoch);
        let signed = |(node, signature): &(&NodeId, &Signature)| {
            let signer = lockstep_types::signature::recover_address(&digest, signature).ok();
            signer.is_some() && signer == self.members.set().voter(**node)
        };
        let found = signatures.iter().filter(signed).count() as u64;
        // A network that has shrunk must not stand still for want of voters.
        let needed = source.attestations.min(self.members.set().majority() as u64);
        if found < needed { Err(ChainRefusal::Attestations { found, needed }) } else { Ok(()) }
    }

    pub(super) fn apply_chain<V: History>(
        &mut self,
        view: &V,
        time_ms: TimeMs,
        update: ChainUpdate,
        signatures: &BTreeMap<NodeId, Signature>,
    ) -> Result<Applied, ApplyError<V::Error>> {
        if let Err(reason) = self.check_chain(&update, signatures) {
            return Ok(Applied { chain_refused: Some(reason), ..Applied::default() });
        }
        let now = time_ms.max(self.head.time_ms);
        let mut changes = Changes { view, chain: true, now, effects: Effects::default() };
        changes.follow(update.events)?;
        let mut effects = changes.effects;
        let cursor = ChainCursor { last: update.last, last_hash: update.last_hash };
        effects.chain(cursor);
        self.chain = Some(cursor);
        Ok(self.roll(effects))
    }
}

/// Changes of devices in the making. Reads come before any change of the ledger.
struct Changes<'a, V> {
    view: &'a V,
    /// Whether a chain says which devices there are.
    chain: bool,
    now: TimeMs,
    effects: Effects,
}

impl<V: History> Changes<'_, V> {
    fn device(&self, device: &Address) -> Result<Option<Device>, ApplyError<V::Error>> {
        self.view.device(device).map_err(ApplyError)
    }

    fn grant(&self, project: ProjectId, device: Address) -> Result<Grant, ApplyError<V::Error>> {
        let standings = self.view.standings(&[(project, device)]).map_err(ApplyError)?;
        Ok(standings.first().copied().unwrap_or_default().grant)
    }

    fn list(&mut self, project: ProjectId, device: Address, listed: bool) -> Result<(), ApplyError<V::Error>> {
        let grant = self.grant(project, device)?;
        self.effects.grant(project, device, Grant { listed, ..grant });
        Ok(())
    }

    fn add(
        &mut self,
        project: ProjectId,
        owner: Address,
        entries: Vec<DeviceEntry>,
    ) -> Result<Result<(), OrderError>, ApplyError<V::Error>> {
        // The last entry of a device counts, so that each is read and written once.
        let entries: BTreeMap<Address, Option<String>> = entries.into_iter().map(|e| (e.device, e.document)).collect();
        for (address, document) in entries {
            if self.chain {
                if document.is_some() {
                    return Ok(Err(OrderError::FromChain(address)));
                }
            } else {
                let known = self.device(&address)?.unwrap_or_default();
                let others = known.registrar.filter(|by| known.registered && *by != owner);
                match (others, document) {
                    (Some(by), Some(_)) => return Ok(Err(OrderError::OthersDevice { device: address, by })),
                    // It is registered already; only the project is new to it.
                    (Some(_), None) => {}
                    (None, document) => {
                        let kept = if known.registrar == Some(owner) { known.document } else { Document::Absent };
                        let document = document.map_or(kept, Document::Text);
                        let device = Device { registered: true, registrar: Some(owner), document, ..known };
                        self.effects.device(address, &device);
                    }
                }
            }
            self.list(project, address, true)?;
        }
        Ok(Ok(()))
    }

    fn remove(
        &mut self,
        project: ProjectId,
        owner: Address,
        devices: Vec<Address>,
    ) -> Result<(), ApplyError<V::Error>> {
        for address in devices.into_iter().collect::<BTreeSet<_>>() {
            self.list(project, address, false)?;
            if let Some(known) = self.device(&address)?.filter(|known| known.registrar == Some(owner)) {
                // The record stays, so that its old tokens stay revoked when it comes back.
                self.effects.device(address, &Device { registered: false, tokens_from: self.now, ..known });
            }
        }
        Ok(())
    }

    fn revoke(
        &mut self,
        project: ProjectId,
        owner: Address,
        devices: Vec<Address>,
    ) -> Result<Result<(), OrderError>, ApplyError<V::Error>> {
        for address in devices {
            let Some(known) = self.device(&address)?.filter(|known| known.registered) else {
                return Ok(Err(OrderError::NotRegistered(address)));
            };
            let own = match known.registrar {
                Some(registrar) => registrar == owner,
                None => self.grant(project, address)?.approved,
            };
            if !own {
                return Ok(Err(OrderError::NotRegistered(address)));
            }
            self.effects.device(address, &Device { tokens_from: self.now, ..known });
        }
        Ok(Ok(()))
    }

    fn follow(&mut self, events: Vec<ChainEvent>) -> Result<(), ApplyError<V::Error>> {
        let (mut devices, mut grants) = (BTreeMap::new(), BTreeMap::new());
        for event in events {
            match event {
                ChainEvent::Device { device, owner, hash, uri } => {
                    drop(devices.insert(device, Some((owner, hash, uri))))
                }
                ChainEvent::Removed(device) => drop(devices.insert(device, None)),
                ChainEvent::Approved(project, device) => drop(grants.insert((project, device), true)),
                ChainEvent::Unapproved(project, device) => drop(grants.insert((project, device), false)),
            }
        }
        for (address, change) in devices {
            let known = self.device(&address)?.unwrap_or_default();
            let device = match change {
                Some((owner, hash, uri)) => {
                    let document = Document::Remote { uri, hash };
                    Device { registered: true, registrar: None, owner: Some(owner), document, ..known }
                }
                // The record stays, so that its old tokens stay revoked when it comes back.
                None => Device { registered: false, tokens_from: self.now, ..known },
            };
            self.effects.device(address, &device);
        }
        for ((project, device), approved) in grants {
            let grant = self.grant(project, device)?;
            self.effects.grant(project, device, Grant { approved, ..grant });
        }
        Ok(())
    }
}
