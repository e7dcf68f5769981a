//! Whether what owners of projects ordered was carried out, everywhere, and before what came after it.

use std::collections::BTreeMap;

use lockstep_types::{Address, Height, ProjectId};

use super::{Chain, Promise, Violations};

/// A device may not submit to a project between two places of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The project.
    pub project: ProjectId,
    /// The device.
    pub device: Address,
    /// The order that removed it was carried out before any batch above this one.
    pub above: Height,
    /// This batch was there before anybody ordered that it may again.
    pub up_to: Height,
}

/// Finds messages of devices that were removed before.
pub(super) fn check_bans(chain: &Chain, bans: &[Ban], violations: &mut Violations) {
    let mut of: BTreeMap<(ProjectId, Address), Vec<&Ban>> = BTreeMap::new();
    for ban in bans {
        of.entry((ban.project, ban.device)).or_default().push(ban);
    }
    for batch in &chain.batches {
        let height = batch.header.height;
        for ordered in &batch.messages {
            let message = &ordered.message;
            let bans = of.get(&(message.project_id, message.device));
            if bans.is_some_and(|bans| bans.iter().any(|ban| ban.above < height && height <= ban.up_to)) {
                let (device, project) = (message.device, message.project_id);
                let text = format!("batch {height} has a message of {device}, which project {project} had removed");
                violations.add(Promise::Registry, text);
            }
        }
    }
}

/// Compares what nodes have of the registry with what was ordered, and with each other.
pub(super) fn check_registries(chains: &[Chain], ordered: Option<&str>, violations: &mut Violations) {
    let Some(expected) = ordered.or_else(|| Some(&chains.first()?.registry)) else { return };
    for chain in chains.iter().filter(|chain| chain.registry != expected) {
        let text = format!("node {} has {}, and {expected} was expected", chain.node, chain.registry);
        violations.add(Promise::Registry, text);
    }
}
