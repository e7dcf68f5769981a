//! What goes wrong. A seed chooses it; what it meets differs from run to run.

use std::fmt;
use std::time::Duration;

use crate::partition::Pace;
use crate::random::Random;

/// Stores outside the nodes that tasks are published to.
pub const STORES: [&str; 4] = ["PostgreSQL", "S3", "alt-DA", "Celestia"];

/// One fault. Nodes are named by their places.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// SIGKILL to these.
    Kill(Vec<usize>),
    /// SIGSTOP.
    Pause(usize),
    /// SIGTERM, and started again.
    Restart(usize),
    /// All of them, one after the other.
    RollingRestart,
    /// Cut off from all others.
    Isolate(usize),
    /// These cannot reach the others.
    Split(Vec<usize>),
    /// Two cannot reach each other, and all others can reach both.
    Cut(usize, usize),
    /// What the first sends does not reach the second.
    CutOneWay(usize, usize),
    /// What it sends reaches nobody.
    Mute(usize),
    /// Nothing reaches it.
    Deafen(usize),
    /// Its links are slow.
    SlowLinks(usize, Pace),
    /// Its connections end.
    DropConnections(usize),
    /// There is no room on its disk.
    FullDisk(usize),
    /// The small file system in memory of one node has no more room.
    FullTmpfs,
    /// Syncs take long.
    SlowDisk(usize, Duration),
    /// Syncs fail, and what was not synced is lost.
    BadDisk(usize),
    /// Its wall clock is wrong.
    Clock(usize, i64),
    /// It loses power.
    PowerLoss(usize),
    /// All lose power at the same moment.
    PowerLossOfAll,
    /// A store answers nobody.
    StoreDown(usize),
    /// A store is slow.
    StoreSlow(usize),
}

impl Fault {
    /// Its kind, for statistics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill -9",
            Self::Pause(_) => "SIGSTOP",
            Self::Restart(_) => "restart",
            Self::RollingRestart => "rolling restart",
            Self::Isolate(_) => "isolated node",
            Self::Split(_) => "partition",
            Self::Cut(..) => "two nodes cut off from each other",
            Self::CutOneWay(..) | Self::Mute(_) | Self::Deafen(_) => "cut one way",
            Self::SlowLinks(..) => "slow links",
            Self::DropConnections(_) => "dropped connections",
            Self::FullDisk(_) => "full disk",
            Self::FullTmpfs => "full tmpfs",
            Self::SlowDisk(..) => "slow disk",
            Self::BadDisk(_) => "failing disk",
            Self::Clock(..) => "wrong clock",
            Self::PowerLoss(_) => "power loss",
            Self::PowerLossOfAll => "power loss of all",
            Self::StoreDown(_) => "store down",
            Self::StoreSlow(_) => "store slow",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |nodes: &[usize]| nodes.iter().map(|node| (node + 1).to_string()).collect::<Vec<_>>().join(" ");
        match self {
            Self::Kill(nodes) => write!(f, "kill {}", names(nodes)),
            Self::Pause(node) => write!(f, "pause {}", node + 1),
            Self::Restart(node) => write!(f, "restart {}", node + 1),
            Self::RollingRestart => write!(f, "rolling restart"),
            Self::Isolate(node) => write!(f, "isolate {}", node + 1),
            Self::Split(nodes) => write!(f, "split off {}", names(nodes)),
            Self::Cut(one, other) => write!(f, "cut {} from {}", one + 1, other + 1),
            Self::CutOneWay(from, to) => write!(f, "cut {} to {}", from + 1, to + 1),
            Self::Mute(node) => write!(f, "mute {}", node + 1),
            Self::Deafen(node) => write!(f, "deafen {}", node + 1),
            Self::SlowLinks(node, pace) => match pace.bytes_per_second {
                Some(bytes) => write!(f, "{} bytes a second for {}", bytes, node + 1),
                None => write!(f, "{} ms delay for {}", pace.delay.as_millis(), node + 1),
            },
            Self::DropConnections(node) => write!(f, "drop connections of {}", node + 1),
            Self::FullDisk(node) => write!(f, "full disk of {}", node + 1),
            Self::FullTmpfs => write!(f, "full tmpfs"),
            Self::SlowDisk(node, by) => write!(f, "{} ms more for each sync of {}", by.as_millis(), node + 1),
            Self::BadDisk(node) => write!(f, "failing disk of {}", node + 1),
            Self::Clock(node, off) => write!(f, "clock of {} off by {off} ms", node + 1),
            Self::PowerLoss(node) => write!(f, "power loss of {}", node + 1),
            Self::PowerLossOfAll => write!(f, "power loss of all"),
            Self::StoreDown(store) => write!(f, "{} down", STORES[*store]),
            Self::StoreSlow(store) => write!(f, "{} slow", STORES[*store]),
        }
    }
}

/// What can be done here.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    /// How many nodes there are.
    pub nodes: usize,
    /// Whether their disks can lose what was not synced.
    pub disks: bool,
    /// Whether one of them is on a small file system in memory.
    pub tmpfs: bool,
}

/// Draws a fault. Leaders are hit more often than the others.
pub fn draw(random: &mut Random, means: Means, leader: Option<usize>) -> Fault {
    let nodes = means.nodes;
    loop {
        let any = random.below(nodes);
        let one = if random.below(2) == 0 { leader.unwrap_or(any) } else { any };
        let other = (one + 1 + random.below(nodes.max(2) - 1)) % nodes;
        let group = || if one == other { vec![one] } else { vec![one, other] };
        let pace = match random.below(2) {
            0 => Pace { delay: Duration::from_millis(20 + random.below(400) as u64), bytes_per_second: None },
            _ => Pace { delay: Duration::ZERO, bytes_per_second: Some(20_000 + 1_000 * random.below(200) as u32) },
        };
        let off = (1 + random.below(30_000) as i64) * if random.below(2) == 0 { 1 } else { -1 };
        let store = random.below(STORES.len());
        let sync = Duration::from_millis(5 + random.below(300) as u64);
        let fault = match random.below(30) {
            0..=2 => Fault::Kill(vec![one]),
            3 => Fault::Kill(group()),
            4 => Fault::Kill((0..nodes).collect()),
            5..=6 => Fault::Pause(one),
            7 => Fault::Restart(one),
            8 => Fault::RollingRestart,
            9..=10 => Fault::Isolate(one),
            11..=12 => Fault::Split(group()),
            13 => Fault::Cut(one, other),
            14 => Fault::CutOneWay(one, other),
            15 => Fault::Mute(one),
            16 => Fault::Deafen(one),
            17..=18 => Fault::SlowLinks(one, pace),
            19 => Fault::DropConnections(one),
            20 => Fault::FullDisk(one),
            21 => Fault::FullTmpfs,
            22 => Fault::SlowDisk(one, sync),
            23 => Fault::BadDisk(one),
            24 => Fault::Clock(one, off),
            25 => Fault::PowerLoss(one),
            26..=27 => Fault::PowerLossOfAll,
            28 => Fault::StoreDown(store),
            _ => Fault::StoreSlow(store),
        };
        let is_possible = match &fault {
            Fault::FullDisk(_)
            | Fault::SlowDisk(..)
            | Fault::BadDisk(_)
            | Fault::Clock(..)
            | Fault::PowerLoss(_)
            | Fault::PowerLossOfAll => means.disks,
            Fault::FullTmpfs => means.tmpfs,
            Fault::Cut(..) | Fault::CutOneWay(..) | Fault::Split(_) => nodes > 2,
            _ => true,
        };
        // A rolling restart takes long.
        if is_possible && (fault != Fault::RollingRestart || random.below(4) == 0) {
            return fault;
        }
    }
}
