//! A new output in config.toml: what is there stays as it is, and the new section comes behind it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lockstep_outputs::{OutputError, Owner};
use lockstep_store::home::replace_file;
use lockstep_types::{OutputName, ProjectId, TaskNumber};

use crate::config::{Config, OutputConfig, Scope};
use crate::error::NodeError;
use crate::home::Home;
use crate::open_store;

/// An output as an operator describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOutput {
    /// Its name.
    pub name: OutputName,
    /// Who feeds it.
    pub scope: Scope,
    /// What it is, as in config.toml.
    pub kind: String,
    /// Projects whose tasks it takes; none: all.
    pub projects: Vec<ProjectId>,
    /// The settings of its kind by their names in config.toml.
    pub settings: Vec<(&'static str, Setting)>,
}

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

/// An output that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedOutput {
    /// As it was read back.
    pub config: OutputConfig,
    /// The last task that its store has; `None` where nobody looked.
    pub found: Option<Option<TaskNumber>>,
    /// Whether a node runs in the home: it does not know of the output before its next start.
    pub runs: bool,
}

impl NewOutput {
    /// Its section.
    fn text(&self) -> Result<String, NodeError> {
        let mut table = toml::Table::new();
        table.insert("name".into(), self.name.as_str().into());
        let scope = toml::Value::try_from(self.scope).map_err(|e| NodeError::Config(e.to_string()))?;
        table.insert("scope".into(), scope);
        table.insert("kind".into(), self.kind.as_str().into());
        for (key, value) in &self.settings {
            let value = match value {
                Setting::Text(text) => text.as_str().into(),
                Setting::Number(number) => number_value(key, *number)?,
            };
            table.insert((*key).to_owned(), value);
        }
        if !self.projects.is_empty() {
            let projects = self.projects.iter().map(|project| number_value("projects", project.0));
            table.insert("projects".into(), toml::Value::Array(projects.collect::<Result<_, _>>()?));
        }
        let lines = toml::to_string(&table).map_err(|e| NodeError::Config(e.to_string()))?;
        Ok(format!("[[output]]\n{lines}"))
    }
}

fn number_value(key: &str, number: u64) -> Result<toml::Value, NodeError> {
    let number = i64::try_from(number).map_err(|_| NodeError::Config(format!("{key}: {number} is too large")))?;
    Ok(number.into())
}

/// The file's text with the new section, and the output as it is read back.
fn with_output(text: &str, new: &NewOutput) -> Result<(String, OutputConfig), NodeError> {
    let before = Config::parse(text)?;
    if before.outputs.iter().any(|output| output.name == new.name) {
        return Err(NodeError::Config(format!("config.toml has an output {} already", new.name)));
    }
    let gap = if text.is_empty() || text.ends_with('\n') { "\n" } else { "\n\n" };
    let text = format!("{text}{gap}{}", new.text()?);
    let mut after = Config::parse(&text)?;
    let added = after.outputs.pop().filter(|added| added.name == new.name);
    let added = added.filter(|_| after == before);
    // Whatever else the file is like, nothing but this may have changed.
    let added = added.ok_or_else(|| NodeError::Config("config.toml cannot be added to; enter it by hand".into()))?;
    Ok((text, added))
}

/// Adds an output to a home's config.toml. With `check` its store has to be reached first, and be empty or of this network
/// and epoch; tables are made there.
///
/// # Errors
/// If a setting is wrong, the name is taken, or the check fails; nothing was changed then.
pub async fn add_output(home: &Home, new: &NewOutput, check: bool) -> Result<AddedOutput, NodeError> {
    // It may be a link to where the settings of several machines are kept.
    let path = home.file("config.toml");
    let failed = |e: std::io::Error| NodeError::Config(format!("{}: {e}", path.display()));
    let target = path.canonicalize().map_err(failed)?;
    let old = std::fs::read_to_string(&target).map_err(failed)?;
    let (text, config) = with_output(&old, new)?;
    let found = if check { Some(look(home, &config).await?) } else { None };
    write(&target, &old, &text).map_err(failed)?;
    Ok(AddedOutput { config, found, runs: home.is_running() })
}

/// Replaces the file, unless somebody else has changed it meanwhile.
fn write(path: &Path, old: &str, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path)? != old {
        return Err(std::io::Error::other("somebody else has changed it meanwhile: begin again"));
    }
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    replace_file(path, text, mode)
}

/// Looks whether the store can be reached and is ours.
async fn look(home: &Home, config: &OutputConfig) -> Result<Option<TaskNumber>, NodeError> {
    let name = &config.name;
    let without = |reason: String| NodeError::Config(format!("output {name}: {reason}"));
    let genesis = home.genesis().map_err(|error| {
        without(format!(
            "{error}. Without the genesis nobody can say whose the store is; --no-check adds it all the same"
        ))
    })?;
    let (network, epoch) = (genesis.id()?, home.epochs(&genesis)?.current());
    let owner = Owner { network, epoch, first_task_number: genesis.params.first_task_number };
    let output = open_store::open(config, home.path(), owner)?;
    output.last().await.map_err(|error| match error {
        OutputError::Retryable(reason) => {
            without(format!("its store cannot be reached: {reason} (--no-check adds it all the same)"))
        }
        error => without(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OutputKind;

    const OLD: &str = "# ours\n[http]\nlisten = \"127.0.0.1:9000\" # here\n[p2p]\nlisten = [\"/ip4/0.0.0.0/tcp/9100\"]\n\n[[output]]\nname = \"tasks\"\nscope = \"node\"\nkind = \"sqlite\"\npath = \"tasks.sqlite\"";

    fn new(name: &str, kind: &str, settings: &[(&'static str, &str)]) -> NewOutput {
        NewOutput {
            name: name.parse().unwrap(),
            scope: Scope::Network,
            kind: kind.into(),
            projects: Vec::new(),
            settings: settings.iter().map(|(key, value)| (*key, Setting::Text((*value).into()))).collect(),
        }
    }

    #[test]
    fn what_is_there_stays_to_the_letter_and_the_new_section_reads_back() {
        let mut wanted = new("more", "postgres", &[("dsn_file", "a \"b\"\\c"), ("schema", "s"), ("layout", "sprout")]);
        wanted.projects = vec![ProjectId(7), ProjectId(8)];
        let (text, config) = with_output(OLD, &wanted).unwrap();
        assert!(text.starts_with(OLD));
        assert_eq!((config.scope, config.projects), (Scope::Network, Some([ProjectId(7), ProjectId(8)].into())));
        assert!(matches!(config.kind, OutputKind::Postgres { dsn_file, .. } if dsn_file == Path::new("a \"b\"\\c")));
        let (again, _) = with_output(&text, &new("third", "object", &[("url", "file:blobs")])).unwrap();
        assert_eq!(Config::parse(&again).unwrap().outputs.len(), 3);
    }

    #[test]
    fn mistakes_are_those_of_the_file() {
        let error = |new: &NewOutput| with_output(OLD, new).unwrap_err().to_string();
        assert!(error(&new("tasks", "sqlite", &[("path", "b")])).contains("already"));
        assert!(error(&new("more", "sqlite", &[("url", "b")])).contains("output more"));
        assert!(error(&new("more", "tape", &[])).contains("tape"));
        let inline = "output = []\n[http]\nlisten = \"127.0.0.1:9000\"\n[p2p]\nlisten = []";
        assert!(with_output(inline, &new("more", "sqlite", &[("path", "b")])).is_err());
    }

    #[tokio::test]
    async fn nothing_is_written_where_the_check_fails_and_the_mode_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (home, file) = (Home::at(directory.path()), directory.path().join("config.toml"));
        std::fs::write(&file, OLD).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let wanted = new("more", "sqlite", &[("path", "more.sqlite")]);
        assert!(add_output(&home, &wanted, true).await.unwrap_err().to_string().contains("--no-check"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), OLD);
        let added = add_output(&home, &wanted, false).await.unwrap();
        assert_eq!((added.found, added.runs, home.config().unwrap().outputs.len()), (None, false, 2));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
