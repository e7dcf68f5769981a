//! The share of each project in the messages that wait at this node's doors. All of them have
//! [`lockstep_api::Options::submits_max`] places, which are taken before it is known whose message comes in; without this one
//! project could have them all, and the rest would hear 429.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_types::ProjectId;
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Held {
    total: usize,
    projects: BTreeMap<ProjectId, usize>,
}

/// Counts messages that wait at the doors. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct DoorShares {
    places: usize,
    held: Arc<Mutex<Held>>,
}

impl DoorShares {
    /// For doors with so many places.
    pub fn new(places: usize) -> Self {
        Self { places, held: Arc::default() }
    }

    /// A place for a message of a project, as long as the project holds no more than is free: the rule of the pool. The
    /// message waits until the place is dropped.
    pub fn enter(&self, project: ProjectId) -> Option<PlaceAtDoor> {
        let mut held = self.held.lock();
        let free = self.places.saturating_sub(held.total);
        let own = held.projects.get(&project).copied().unwrap_or_default();
        if free == 0 || own > free {
            return None;
        }
        held.total += 1;
        held.projects.insert(project, own + 1);
        Some(PlaceAtDoor { shares: self.clone(), project })
    }
}

/// A message that waits at a door; it does no more when this is dropped.
#[derive(Debug)]
pub(crate) struct PlaceAtDoor {
    shares: DoorShares,
    project: ProjectId,
}

impl Drop for PlaceAtDoor {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        held.total -= 1;
        if let Some(own) = held.projects.get_mut(&self.project) {
            *own -= 1;
            if *own == 0 {
                held.projects.remove(&self.project);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_that_floods_leaves_half_of_the_places_and_gives_back_what_it_had() {
        let shares = DoorShares::new(100);
        let flood = |project: u64| std::iter::from_fn(|| shares.enter(ProjectId(project))).collect::<Vec<_>>();
        let first = flood(1);
        assert_eq!(first.len(), 51);
        assert_eq!(flood(1).len(), 0);
        let second = flood(2);
        assert_eq!(second.len(), 25);
        assert!(shares.enter(ProjectId(3)).is_some());
        drop(first);
        assert_eq!(flood(1).len(), 38);
        drop(second);
        let held = shares.held.lock();
        assert!(held.total == 0 && held.projects.is_empty(), "{held:?}");
    }
}
