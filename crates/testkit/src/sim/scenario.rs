//! What a run is: how many nodes, messages and faults, for how long.

use std::str::FromStr;
use std::time::Duration;

use lockstep_ledger::{RULES_FIRST, RULES_NEWEST};

use super::bugs::{Bug, Bugs};
use super::years::Years;

/// Faults of a kind are drawn with this weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A node loses its power at some step, and comes back.
    Crash,
    /// A process ends, and comes back.
    Kill,
    /// All nodes lose their power at once.
    Blackout,
    /// A link is cut in one direction.
    CutOneWay,
    /// A node is cut off.
    Isolate,
    /// The nodes are cut in two.
    Split,
    /// The links of a node are slow.
    SlowLinks,
    /// Links lose and repeat messages.
    LossyLinks,
    /// A clock is off by seconds.
    ClockOff,
    /// The clock of one machine, always the same, is a day ahead or behind.
    ClockLeap,
    /// Syncs of a disk take long.
    SlowDisk,
    /// A disk fails, or is full.
    BadDisk,
    /// The lead is handed over.
    HandOver,
    /// An output is away, or slow.
    OutputTrouble,
    /// A node loses its disk, for good.
    Wipe,
    /// A process is stopped for a while, and goes on.
    Pause,
    /// A bit of what a disk holds flips.
    Flip,
    /// A sync of a disk does not return; after a while the machine is switched off and on.
    HungSync,
    /// The leader ends while all disks are slow.
    SlowElection,
    /// A node is away for longer than batches are kept.
    Absence,
    /// So many nodes are away that the others are no majority: longer than the retry window, or nearly.
    Outage,
}

const ALL: &[Fault] = &[
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::Kill,
    Fault::Blackout,
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::Isolate,
    Fault::Split,
    Fault::SlowLinks,
    Fault::LossyLinks,
    Fault::ClockOff,
    Fault::SlowDisk,
    Fault::BadDisk,
    Fault::HandOver,
    Fault::OutputTrouble,
    Fault::Wipe,
    Fault::Pause,
    Fault::Pause,
    Fault::Flip,
];

/// What there was at first: seeds that showed a bug then make the same run again.
const FIRST: &[Fault] = &[
    Fault::Crash,
    Fault::Crash,
    Fault::Crash,
    Fault::Kill,
    Fault::Blackout,
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::Isolate,
    Fault::Split,
    Fault::SlowLinks,
    Fault::LossyLinks,
    Fault::ClockOff,
    Fault::SlowDisk,
    Fault::BadDisk,
    Fault::HandOver,
    Fault::OutputTrouble,
    Fault::Wipe,
];

/// The same content within this time is a retry: longer than any run.
const RETRY_WINDOW_MS: u64 = 3_600_000;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What to call it.
    pub name: &'static str,
    /// Voters.
    pub nodes: usize,
    /// Different messages.
    pub messages: usize,
    /// Clients that send them.
    pub clients: usize,
    /// Of a thousand messages so many are submitted twice.
    pub twice_of_1000: u64,
    /// Faults.
    pub faults: usize,
    /// What faults there are, each as often as it stands here.
    pub kinds: &'static [Fault],
    /// Changes of membership.
    pub changes: usize,
    /// Whether operators replace machines whose disks are lost or damaged.
    pub replaces: bool,
    /// Whether one project has an owner, who orders which devices may submit to it.
    pub has_owner: bool,
    /// Readers of the feed.
    pub readers: usize,
    /// Time of load and faults.
    pub length: Duration,
    /// The same content within this time is a retry, but in a project that has an owner. Clients do not try for longer.
    pub retry_window_ms: u64,
    /// Log entries since the last copy of the state that make another one due.
    pub log_entries_max: u64,
    /// Whether batches are forgotten soon, while groups stay open and an output is dead for a while.
    pub forgets: bool,
    /// Whether the network grows old, and how old.
    pub years: Option<Years>,
    /// Newest rules of `apply` that the first nodes know; the others know the newest.
    pub rules_max: [u32; 2],
    /// The bug that is put in, if any.
    pub bugs: Bugs,
}

impl Scenario {
    /// What is run where nothing else is said.
    pub fn standard() -> Self {
        Self {
            name: "default",
            nodes: 5,
            messages: 500,
            clients: 10,
            twice_of_1000: 100,
            faults: 10,
            kinds: ALL,
            changes: 2,
            replaces: true,
            has_owner: true,
            readers: 2,
            length: Duration::from_secs(60),
            retry_window_ms: RETRY_WINDOW_MS,
            log_entries_max: 1_000_000,
            forgets: false,
            years: None,
            rules_max: [RULES_NEWEST, RULES_NEWEST],
            bugs: Bugs::none(),
        }
    }

    /// Without what came later: changes of membership, orders, readers, pauses and flipped bits.
    pub fn plain() -> Self {
        Self {
            name: "plain",
            kinds: FIRST,
            changes: 0,
            replaces: false,
            has_owner: false,
            readers: 0,
            ..Self::standard()
        }
    }

    /// Members join, leave and are replaced all the time, while nodes crash and are cut off.
    pub fn members() -> Self {
        let kinds = &[
            Fault::Crash,
            Fault::Crash,
            Fault::Kill,
            Fault::Isolate,
            Fault::Split,
            Fault::HandOver,
            Fault::Pause,
            Fault::Wipe,
            Fault::Blackout,
        ];
        Self { name: "members", kinds, changes: 8, ..Self::standard() }
    }

    /// Disks flip bits, and lose all.
    pub fn disks() -> Self {
        let kinds = &[Fault::Flip, Fault::Flip, Fault::Flip, Fault::Wipe, Fault::Crash, Fault::Kill, Fault::BadDisk];
        Self { name: "disks", kinds, ..Self::standard() }
    }

    /// Copies of the state are made and sent all the time.
    pub fn snapshots() -> Self {
        let kinds = &[Fault::Crash, Fault::Kill, Fault::Isolate, Fault::Isolate, Fault::Blackout, Fault::SlowLinks];
        Self { name: "snapshots", log_entries_max: 40, kinds, ..Self::standard() }
    }

    /// The clock of a machine is a day ahead or behind again and again: under a node that runs, and when it starts. Now and
    /// then one of the two others is missing.
    pub fn clocks() -> Self {
        let kinds = &[
            Fault::ClockLeap,
            Fault::ClockLeap,
            Fault::ClockLeap,
            Fault::ClockOff,
            Fault::Kill,
            Fault::Isolate,
            Fault::Split,
            Fault::HandOver,
            Fault::Pause,
        ];
        Self { name: "clocks", kinds, nodes: 3, changes: 0, replaces: false, ..Self::standard() }
    }

    /// The same for a voter that has no other: its machine's clock leaps while it runs. What it shows when a node starts
    /// counts for that node, so it is not started again.
    pub fn clocks_alone() -> Self {
        let kinds = &[Fault::ClockLeap, Fault::Pause, Fault::SlowDisk, Fault::OutputTrouble];
        Self { name: "clocks-alone", kinds, nodes: 1, ..Self::clocks() }
    }

    /// Batches are forgotten after seconds, while nodes lose their power: what a node goes back to lacks nothing that it
    /// needs. Copies, which put the state on the disk, are some seconds apart, as horizons are.
    pub fn forgets() -> Self {
        let kinds = &[Fault::Crash, Fault::Crash, Fault::Blackout, Fault::Kill, Fault::Absence];
        let retry_window_ms = lockstep_types::genesis::RETRY_WINDOW_MS_MIN;
        Self { name: "forgets", log_entries_max: 400, forgets: true, retry_window_ms, kinds, ..Self::plain() }
    }

    /// The same, while members come and go: who joins later gets a copy of a state that has forgotten.
    pub fn forgets_members() -> Self {
        let length = Duration::from_secs(90);
        Self { name: "forgets-members", changes: 5, replaces: true, length, ..Self::forgets() }
    }

    /// Disks that stand still for good, and that are slow while a leader is elected.
    pub fn stalls() -> Self {
        let kinds = &[
            Fault::HungSync,
            Fault::HungSync,
            Fault::SlowElection,
            Fault::SlowElection,
            Fault::SlowDisk,
            Fault::Kill,
            Fault::HandOver,
        ];
        Self { name: "stalls", kinds, ..Self::standard() }
    }

    /// Half of the nodes know older rules, and learn the newer ones when they are started again.
    pub fn upgrade() -> Self {
        let kinds = &[Fault::Crash, Fault::Kill, Fault::Kill, Fault::Kill, Fault::HandOver, Fault::Isolate];
        Self { name: "upgrade", rules_max: [RULES_FIRST, RULES_FIRST + 1], kinds, ..Self::standard() }
    }

    /// The same in the middle of changes of members, and of copies of the state that are sent.
    pub fn upgrade_members() -> Self {
        let kinds =
            &[Fault::Kill, Fault::Kill, Fault::Kill, Fault::Crash, Fault::HandOver, Fault::Isolate, Fault::Wipe];
        Self { name: "upgrade-members", kinds, changes: 8, log_entries_max: 40, ..Self::upgrade() }
    }

    /// Nobody leads for longer than the retry window, or nearly, while copies of messages are under way: what waits in pools and
    /// logs is judged by when it came in.
    pub fn outage() -> Self {
        let (nodes, faults, length) = (3, 3, Duration::from_secs(120));
        Self {
            name: "outage",
            kinds: &[Fault::Outage],
            nodes,
            faults,
            length,
            retry_window_ms: 20_000,
            ..Self::plain()
        }
    }

    /// Ten years: what is old is forgotten, machines are replaced, owners give orders, outputs come and go.
    pub fn years() -> Self {
        Self::old("years", Years::TEN)
    }

    /// The same for three years, with fewer messages and orders.
    pub fn years_short() -> Self {
        Self::old("years-short", Years::SHORT)
    }

    fn old(name: &'static str, years: Years) -> Self {
        let kinds = &[
            Fault::Crash,
            Fault::Crash,
            Fault::Blackout,
            Fault::Kill,
            Fault::HandOver,
            Fault::Isolate,
            Fault::SlowDisk,
            Fault::OutputTrouble,
        ];
        // Faults and changes are those of the life; it takes as long as it takes.
        Self {
            name,
            kinds,
            nodes: 3,
            faults: 0,
            messages: years.messages(),
            length: Duration::ZERO,
            log_entries_max: 1_000,
            rules_max: [RULES_FIRST, RULES_FIRST + 1],
            years: Some(years),
            ..Self::plain()
        }
    }

    /// Nothing goes wrong.
    pub fn calm() -> Self {
        Self { name: "calm", faults: 0, ..Self::standard() }
    }

    /// All of them.
    pub fn all() -> Vec<Self> {
        vec![
            Self::standard(),
            Self::members(),
            Self::disks(),
            Self::snapshots(),
            Self::forgets(),
            Self::forgets_members(),
            Self::stalls(),
            Self::upgrade(),
            Self::upgrade_members(),
            Self::clocks(),
            Self::clocks_alone(),
            Self::outage(),
            Self::years(),
            Self::years_short(),
            Self::plain(),
            Self::calm(),
        ]
    }

    /// What shows a bug soonest.
    pub fn for_bug(bug: Bug) -> Self {
        let bugs = Bugs::only(bug);
        match bug {
            Bug::ForgetRetries => Self { bugs, twice_of_1000: 400, replaces: false, ..Self::snapshots() },
            // Several horizons have to lie between the state on a disk and the one in memory.
            Bug::ForgetEarly => {
                Self { bugs, log_entries_max: 2_000, twice_of_1000: 400, faults: 20, ..Self::forgets() }
            }
            Bug::ServeFlipped => Self { bugs, kinds: &[Fault::Flip], faults: 60, ..Self::standard() },
            Bug::OldMembers => Self { bugs, ..Self::members() },
            Bug::MixedRules => Self { bugs, ..Self::upgrade() },
            Bug::SnapshotWithoutMembers => {
                let kinds = &[Fault::Isolate, Fault::Isolate, Fault::Crash, Fault::Kill];
                Self { bugs, kinds, changes: 6, ..Self::snapshots() }
            }
            Bug::PurgeBeforeFlush => Self { bugs, kinds: &[Fault::Crash, Fault::Blackout], ..Self::snapshots() },
            Bug::ReuseTermVote => {
                let kinds = &[Fault::Crash, Fault::Crash, Fault::Crash, Fault::Isolate, Fault::CutOneWay];
                Self { bugs, kinds, nodes: 3, faults: 40, ..Self::plain() }
            }
            Bug::KeepsAll => Self { bugs, ..Self::years_short() },
            Bug::WindowByProposal => Self { bugs, ..Self::outage() },
            Bug::AckBeforeApplyTerm => {
                let kinds = &[Fault::Outage, Fault::SlowDisk, Fault::SlowDisk, Fault::SlowDisk, Fault::HandOver];
                Self { bugs, kinds, faults: 20, ..Self::outage() }
            }
            Bug::NoSync | Bug::TornWrites => {
                Self { bugs, kinds: &[Fault::Blackout, Fault::Crash, Fault::Isolate], ..Self::plain() }
            }
            Bug::AnswerBeforeQuorum => {
                Self { bugs, kinds: &[Fault::Crash, Fault::Isolate, Fault::HandOver], ..Self::plain() }
            }
            Bug::VoteAfterWipe => {
                let kinds = &[Fault::Wipe, Fault::Wipe, Fault::Isolate, Fault::Split];
                Self { bugs, kinds, nodes: 3, ..Self::plain() }
            }
            _ => Self { bugs, ..Self::standard() },
        }
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = Self::all();
        let names: Vec<&str> = all.iter().map(|scenario| scenario.name).collect();
        let error = format!("no such scenario; there are {}", names.join(", "));
        all.into_iter().find(|scenario| scenario.name == text).ok_or(error)
    }
}
