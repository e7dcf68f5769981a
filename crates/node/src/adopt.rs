//! Taking an output of an earlier epoch over, because its operator says so.

use lockstep_outputs::{Adoption, OutputError, Owner};
use lockstep_types::{Epochs, OutputName};

use crate::config::OutputConfig;
use crate::home::Home;
use crate::node::OpenOutput;

/// See the module's documentation.
pub(crate) struct Adopter {
    pub home: Home,
    pub outputs: Vec<OutputConfig>,
    pub open: OpenOutput,
    pub owner: Owner,
    pub epochs: Epochs,
}

impl Adopter {
    /// Takes the output over; the sentence says what was found.
    pub async fn adopt(&self, name: &OutputName, accept_ahead: bool) -> Result<String, String> {
        let config = self.outputs.iter().find(|config| config.name == *name);
        let config = config.ok_or_else(|| format!("config.toml names no output {name}"))?;
        let output = (self.open)(config, &self.home, self.owner).map_err(|e| e.to_string())?;
        let first_tasks = self.epochs.records().iter().map(|record| (record.epoch, record.next_task_number));
        let adoption = Adoption { first_tasks: first_tasks.collect(), accept_ahead };
        let adopted = output.adopt(&adoption).await.map_err(|error| match error {
            OutputError::Ahead { .. } => format!(
                "{error}. To keep these rows all the same, and have the output go on behind them, add --accept-ahead; readers that have seen them saw what this network never ordered"
            ),
            error => error.to_string(),
        })?;
        let last = adopted.last.map_or_else(|| "no task".into(), |last| format!("tasks up to {last}"));
        if adopted.from == self.owner.epoch {
            return Ok(format!("output {name} is of epoch {} already; it has {last}", self.owner.epoch));
        }
        let ahead = adopted.foreign.map(|(first, last)| {
            format!("; of these, tasks {first} to {last} are not part of this history, and the tasks that get these numbers here will not be published to it")
        });
        Ok(format!(
            "output {name} was taken over from epoch {} into epoch {}; it has {last}{}",
            adopted.from,
            self.owner.epoch,
            ahead.unwrap_or_default()
        ))
    }
}
