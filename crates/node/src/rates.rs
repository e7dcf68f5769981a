//! How fast devices and projects may send to this node. A project is looked at before anything is spent on a message,
//! and both are counted once the message's evidence holds: so nobody can use up what belongs to others with messages
//! that prove nothing.

use std::collections::HashMap;
use std::time::Duration;

use lockstep_api::rate::{Buckets, TooFast};
use lockstep_api::{Sender, SubmitError};
use lockstep_ledger::ProjectFuel;
use lockstep_types::{Address, Message, ProjectId, TimeMs};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::doors::LimitsConfig;
use crate::ingress::RETRY_AFTER_MS;
use crate::limits::{RATED_DEVICES_MAX, RATED_PROJECTS_MAX};

/// Shared by ingress and the verification threads. The locks are held for look-ups only.
pub(crate) struct Rates {
    devices: Mutex<Buckets<Address>>,
    projects: Mutex<Buckets<ProjectId>>,
    /// What projects' rules may still cost at this door: as much as in the log. Only registered projects have rules, so
    /// there are no more than those.
    fuel: Mutex<HashMap<ProjectId, ProjectFuel>>,
    started: Instant,
}

impl Rates {
    pub fn new(limits: &LimitsConfig) -> Self {
        Self {
            devices: Mutex::new(Buckets::new(limits.device, RATED_DEVICES_MAX)),
            projects: Mutex::new(Buckets::new(limits.project, RATED_PROJECTS_MAX)),
            fuel: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Whether the project may send more now. Counts nothing.
    pub fn check_project(&self, project: ProjectId) -> Result<(), SubmitError> {
        self.projects.lock().check(&project, self.now()).map_err(|e| refused(Sender::Project, e))
    }

    /// Counts a message whose evidence holds, for its device, if it has one, and its project.
    pub fn take(&self, message: &Message) -> Result<(), SubmitError> {
        let now = self.now();
        if message.device != Address::ZERO {
            self.devices.lock().take(message.device, now).map_err(|e| refused(Sender::Device, e))?;
        }
        self.projects.lock().take(message.project_id, now).map_err(|e| refused(Sender::Project, e))
    }

    /// Whether the project's rules may cost anything at this door.
    pub fn check_fuel(&self, project: ProjectId, per_second: u64) -> Result<(), SubmitError> {
        // By no clock that may be set. A second's fuel is there at the start.
        let passed = self.now() + Duration::from_secs(1);
        let now = TimeMs(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        let has_any = self.fuel.lock().entry(project).or_default().has_any(now, per_second);
        if has_any { Ok(()) } else { Err(SubmitError::RulesFuel { retry_after_ms: RETRY_AFTER_MS }) }
    }

    /// Counts what they have cost.
    pub fn spend_fuel(&self, project: ProjectId, fuel: u64) {
        self.fuel.lock().entry(project).or_default().spend(fuel);
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

fn refused(sender: Sender, TooFast { retry_after_ms }: TooFast) -> SubmitError {
    SubmitError::TooFast { sender, retry_after_ms }
}

#[cfg(test)]
mod tests {
    use lockstep_api::rate::Rate;
    use lockstep_identity::DeviceRequest;
    use lockstep_types::SigningKey;

    use super::*;

    const ONE: Rate = Rate { per_second: 1, burst: 1 };

    fn message(project: u64, device: u8) -> Message {
        let key = SigningKey::from_bytes([9; 32]).unwrap();
        let request = DeviceRequest::new(ProjectId(project), "1".into(), "x".into(), &[]).unwrap();
        Message { device: Address([device; 20]), ..request.vouch(&key).into_message() }
    }

    #[test]
    fn a_device_is_limited_and_messages_without_one_are_not() {
        let rates = Rates::new(&LimitsConfig { device: ONE, ..LimitsConfig::default() });
        assert_eq!(rates.take(&message(7, 1)), Ok(()));
        let refused = rates.take(&message(8, 1));
        assert!(matches!(refused, Err(SubmitError::TooFast { sender: Sender::Device, .. })), "{refused:?}");
        assert_eq!(rates.take(&message(7, 2)), Ok(()));
        assert_eq!((rates.take(&message(7, 0)), rates.take(&message(7, 0))), (Ok(()), Ok(())));
    }

    #[test]
    fn a_project_is_refused_before_a_message_is_looked_at_but_counted_only_after() {
        let rates = Rates::new(&LimitsConfig { project: ONE, ..LimitsConfig::default() });
        assert_eq!((rates.check_project(ProjectId(7)), rates.check_project(ProjectId(7))), (Ok(()), Ok(())));
        assert_eq!(rates.take(&message(7, 1)), Ok(()));
        let refused = rates.check_project(ProjectId(7));
        assert!(matches!(refused, Err(SubmitError::TooFast { sender: Sender::Project, .. })), "{refused:?}");
        assert!(rates.take(&message(7, 2)).is_err());
        assert_eq!(rates.check_project(ProjectId(8)), Ok(()));
    }
}
