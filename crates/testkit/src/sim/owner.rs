//! The owner of a project: registers it, and orders which devices may submit to it, while they do.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use lockstep_rules::Bundle;
use lockstep_types::{
    Address, Change, DeviceEntry, DevicePolicy, Epoch, Height, Order, OrderKind, ProjectId, ProjectSettings,
    RulesOrder, SigningKey, TimeMs,
};
use tokio::time::{Instant, sleep};

use super::changes::{agree, any, within};
use super::clients;
use super::machine;
use super::world::World;
use crate::order::Ban;
use crate::random::Random;

/// The project that is registered.
pub(super) const PROJECT: ProjectId = ProjectId(4);
/// Its retry window, as short as one may be.
pub(super) const WINDOW_MS: u64 = lockstep_types::genesis::RETRY_WINDOW_MS_MIN;
/// An order counts for this long.
const ORDER_LIFE_MS: u64 = 30_000;

pub(super) struct Owner {
    project: ProjectId,
    world: World,
    random: Random,
    key: SigningKey,
    /// Orders that were carried out.
    orders: u64,
    listed: BTreeSet<Address>,
    /// Devices that are not, and since which batch.
    removed: Vec<(Address, Height)>,
}

/// Settings of the project: messages of a group vary.
fn settings(group_messages_max: u64) -> ProjectSettings {
    let devices = Some(DevicePolicy::Listed);
    ProjectSettings { devices, retry_window_ms: WINDOW_MS, group_messages_max, public: true, ..ProjectSettings::open() }
}

/// The registry as a node has it, or as it has to be.
pub(super) fn in_words(orders: u64, devices: impl Iterator<Item = Address>) -> String {
    let devices: Vec<String> = devices.map(|device| device.to_string()).collect();
    format!("{orders} orders, devices {}", devices.join(" "))
}

/// Goes on until the time of load is over.
pub(super) async fn run(world: World, random: Random) {
    let _busy = world.busy();
    let end = Instant::now() + world.scenario.length;
    let Some(mut owner) = Owner::register(&world, random, PROJECT, end).await else { return };
    owner.begin().await;
    while Instant::now() < end {
        sleep(Duration::from_millis(owner.random.number() % 3_000)).await;
        match owner.random.below(11) {
            8..=9 => owner.set_rules().await,
            10 => owner.set_no_rules().await,
            0 => owner.remove(clients::devices()).await,
            1..=3 => {
                let some = owner.some_devices();
                owner.remove(some).await;
            }
            4 => {
                let settings = settings(1 + owner.random.number() % 3);
                owner.order(OrderKind::Settings(settings)).await;
            }
            _ => owner.add(clients::devices()).await,
        }
    }
    owner.finish();
}

/// Rules that take every message, so that who submits need not know of them: they look at the device's last one, mark
/// some, run a module, and pack tasks in their own way. What they come to is in the effects that headers commit to.
const RULES: [&str; 5] = [
    "version = 1\n[decode]\nformat = \"raw\"\n[[validate.expect]]\nthat = \"last == null || time >= last.time\"\n\
     reason = \"back\"\n",
    "version = 1\n[decode]\nformat = \"raw\"\n[[filter]]\nwhen = \"size(data) % 2 == 1\"\ndo = \"flag\"\n\
     reason = \"odd\"\n",
    "version = 1\n[decode]\nformat = \"raw\"\n[code]\nmodule = \"m\"\n",
    "version = 1\ntime = \"time - size(data) * 100\"\n[decode]\nformat = \"raw\"\n[sort]\nby = \"time\"\nhold_ms = 300\n\
     [aggregate]\nby = \"project\"\ncount = 20\nwindow_ms = 1500\n[aggregate.reduce]\n\
     bytes = { of = \"size(data)\", with = \"sum\" }\nmean = { of = \"size(data) * 0.1\", with = \"mean\" }\n",
    "version = 1\ntime = \"time - size(data)\"\n[decode]\nformat = \"raw\"\n[sort]\nby = \"time\"\n\
     [aggregate]\nby = \"field\"\nfield = \"size(data) % 3\"\ncount = 5\nage_ms = 900\n",
];
/// `(module (memory (export "memory") 1) (func (export "check") (result i32) (i32.const 0)))`
const MODULE: &[u8] = b"\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x12\x02\
    \x06memory\x02\0\x05check\0\0\x0a\x06\x01\x04\0\x41\0\x0b";

impl Owner {
    /// Has a project registered, until `end`.
    pub(super) async fn register(world: &World, mut random: Random, project: ProjectId, end: Instant) -> Option<Self> {
        let key = machine::key(2_000);
        let owner = key.address();
        let registered = || {
            let known = |node| world.running(node)?.doors.project(project);
            world.nodes().into_iter().filter_map(known).any(|project| project.owner.is_some())
        };
        // Where not all nodes know the rules for it in time, there is none.
        let wanted = || !registered() && Instant::now() < end;
        agree(world, &mut random, |_| wanted().then_some(Change::Project(project, owner))).await;
        let (world, orders, listed, removed) = (world.clone(), 0, BTreeSet::new(), Vec::new());
        registered().then_some(Self { project, world, random, key, orders, listed, removed })
    }

    /// The first orders: devices may submit.
    pub(super) async fn begin(&mut self) {
        self.order(OrderKind::Settings(settings(1))).await;
        self.add(clients::devices()).await;
    }

    /// One order more, of all kinds in turns. Devices that are removed are back soon.
    pub(super) async fn go_on(&mut self) {
        match self.orders % 5 {
            0 => {
                let some = self.some_devices();
                self.remove(some).await;
            }
            1 => self.add(clients::devices()).await,
            2 | 3 => self.set_rules().await,
            _ => {
                let settings = settings(1 + self.random.number() % 3);
                self.order(OrderKind::Settings(settings)).await;
            }
        }
    }

    /// Writes down what the registry has to be from now on.
    pub(super) fn finish(self) {
        let bans = self.removed.iter().map(|(device, above)| self.ban(*device, *above, Height(u64::MAX))).collect();
        if self.project == PROJECT {
            self.world.record.registry(bans, in_words(self.orders, self.listed.into_iter()));
        } else {
            self.world.record.ban(bans);
        }
    }

    /// From a batch on that is there, or comes soon.
    fn soon(&mut self) -> Height {
        Height(self.world.record.newest().0 + self.random.number() % 20)
    }

    async fn set_rules(&mut self) {
        let document = RULES[self.random.below(RULES.len())];
        let files = document.contains("module").then(|| ("m".to_owned(), Bytes::from_static(MODULE)));
        let bundle = Bundle { document: document.to_owned(), files: files.into_iter().collect() };
        let rules = RulesOrder { bundle: Some(bundle.encode().into()), from: self.soon() };
        self.order(OrderKind::Rules(rules)).await;
    }

    async fn set_no_rules(&mut self) {
        let rules = RulesOrder { bundle: None, from: self.soon() };
        self.order(OrderKind::Rules(rules)).await;
    }

    fn some_devices(&mut self) -> Vec<Address> {
        let random = &mut self.random;
        clients::devices().into_iter().filter(|_| random.below(4) == 0).collect()
    }

    fn ban(&self, device: Address, above: Height, up_to: Height) -> Ban {
        Ban { project: self.project, device, above, up_to }
    }

    async fn add(&mut self, devices: Vec<Address>) {
        let entry = |device: &Address| DeviceEntry { device: *device, document: None };
        // Batches that are somewhere by now are before the order.
        let newest = self.world.record.newest();
        self.order(OrderKind::AddDevices(devices.iter().map(entry).collect())).await;
        let (again, still) = std::mem::take(&mut self.removed).into_iter().partition(|(d, _)| devices.contains(d));
        self.removed = still;
        let again: Vec<(Address, Height)> = again;
        let bans = again.iter().map(|(device, above)| self.ban(*device, *above, newest)).collect();
        self.world.record.ban(bans);
        self.listed.extend(devices);
    }

    async fn remove(&mut self, devices: Vec<Address>) {
        let devices: Vec<Address> = devices.into_iter().filter(|device| self.listed.contains(device)).collect();
        if devices.is_empty() {
            return;
        }
        let above = self.order(OrderKind::RemoveDevices(devices.clone())).await;
        for device in devices {
            self.listed.remove(&device);
            self.removed.push((device, above));
        }
    }

    /// The height of a node that has carried out so many orders.
    async fn seen(&self, number: u64) -> Option<Height> {
        let has = |node| {
            let running = self.world.running(node)?;
            running.doors.project(self.project).filter(|project| project.orders >= number)?;
            Some(running)
        };
        let running = self.world.nodes().into_iter().find_map(has)?;
        // It tells of the order before it tells where its ledger stands.
        sleep(Duration::from_millis(1)).await;
        Some(running.head.borrow().as_ref().map_or(Height(0), |head| head.height))
    }

    /// Lets an order be carried out, however long it takes. Returns a height above which it holds.
    async fn order(&mut self, kind: OrderKind) -> Height {
        let number = self.orders + 1;
        let network = self.world.genesis().id().expect("a genesis that was just made");
        loop {
            if let Some(height) = self.seen(number).await {
                self.orders = number;
                self.world.trace.say(format_args!("order {number} was carried out before {height}"));
                return height;
            }
            if let Some((_, running)) = any(&self.world, &mut self.random) {
                let expires_ms = TimeMs(running.doors.now().0 + ORDER_LIFE_MS);
                let order = Order { epoch: Epoch(0), project: self.project, number, expires_ms, kind: kind.clone() };
                let (signed, doors) = (order.sign(&network, &self.key), running.doors.clone());
                if let Some(Err(problem)) = within(&running, async move { doors.order(&signed).await }).await {
                    self.world.trace.say(format_args!("order {number}: {problem}"));
                }
            }
            sleep(Duration::from_millis(20 + self.random.number() % 300)).await;
        }
    }
}
