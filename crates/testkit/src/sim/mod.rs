//! Seeded simulation: many nodes in one process, in simulated time, on simulated disks and links. One seed always makes
//! the same run. docs/simulation.md says what of it is the product's own code.

mod bugs;
mod census;
mod changes;
mod clients;
mod disk;
mod faults;
mod links;
mod machine;
mod output;
mod owner;
mod panics;
mod readers;
mod record;
mod run;
mod scenario;
mod tamper;
mod trace;
mod world;
mod years;

pub use bugs::{Bug, Bugs};
pub use census::{Census, Count, Life};
pub use record::{Record, Seen};
pub use run::{Report, run};
pub use scenario::{Fault, Scenario};
pub use years::Years;
