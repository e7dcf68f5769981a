//! The command line for projects, devices and keys.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use lockstep_node::devices::SecretCurve;
use lockstep_types::genesis::RETRY_WINDOW_FOR_EVER_MS;
use lockstep_types::message::PROJECT_ID_MAX;
use lockstep_types::{Address, DevicePolicy, Digest, ProjectId};

fn retry_window_ms(text: &str) -> Result<u64, String> {
    match text {
        "forever" => Ok(RETRY_WINDOW_FOR_EVER_MS),
        _ => text.parse().map_err(|_| format!("{text:?} is no number of milliseconds, and not `forever`")),
    }
}

/// A project with its owner.
#[derive(Debug, Clone, Copy)]
pub struct ProjectArg {
    /// The project.
    pub id: ProjectId,
    /// The address of its owner's key.
    pub owner: Option<Address>,
}

impl std::str::FromStr for ProjectArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, owner) = text.split_once('=').map_or((text, None), |(id, owner)| (id, Some(owner)));
        let number = id.parse().ok().filter(|id| (1..=PROJECT_ID_MAX).contains(id));
        let id = ProjectId(
            number.ok_or_else(|| format!("{id:?} is not a project id: a number from 1 to {PROJECT_ID_MAX}"))?,
        );
        let owner =
            owner.map(|owner| owner.parse().map_err(|_| format!("{owner:?} is not an address: 0x and 40 hex digits")));
        Ok(Self { id, owner: owner.transpose()? })
    }
}

/// Which devices a project takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DevicesArg {
    /// Those that are registered, and approved for the project.
    Registered,
    /// Those that the project's owner lists.
    Listed,
    /// Any key that signs.
    Any,
}

impl From<DevicesArg> for DevicePolicy {
    fn from(which: DevicesArg) -> Self {
        match which {
            DevicesArg::Registered => Self::Registered,
            DevicesArg::Listed => Self::Listed,
            DevicesArg::Any => Self::Any,
        }
    }
}

/// Which project, and at which node.
#[derive(Debug, ClapArgs)]
pub struct OfProject {
    /// URL of a node.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
    pub url: String,
    /// The project.
    #[arg(long, value_name = "ID", value_parser = project_id)]
    pub project: ProjectId,
}

pub fn project_id(text: &str) -> Result<ProjectId, String> {
    Ok(text.parse::<ProjectArg>()?.id)
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address: 0x and 40 hex digits"))
}

/// Who orders, and for which project.
#[derive(Debug, ClapArgs)]
pub struct Owner {
    /// URL of a node.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
    pub url: String,
    /// The project.
    #[arg(long, value_name = "ID", value_parser = project_id)]
    pub project: ProjectId,
    /// File with the private key of the project's owner: 64 hex digits.
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
}

/// What to set; the rest stays as it is.
#[derive(Debug, ClapArgs)]
pub struct Settings {
    /// A group becomes a task at this many messages.
    #[arg(long, value_name = "COUNT")]
    pub group_messages_max: Option<u64>,
    /// ... or at this many payload bytes.
    #[arg(long, value_name = "BYTES")]
    pub group_bytes_max: Option<u64>,
    /// ... or when it is this old.
    #[arg(long, value_name = "MS")]
    pub group_age_max_ms: Option<u64>,
    /// The same content within this time is a retry; `forever`: for as long as messages are kept.
    #[arg(long, value_name = "MS", value_parser = retry_window_ms)]
    pub retry_window_ms: Option<u64>,
    /// Whether anyone may read the payloads.
    #[arg(long, value_name = "YES")]
    pub public: Option<bool>,
    /// Which devices the project takes.
    #[arg(long, value_name = "WHICH")]
    pub devices: Option<DevicesArg>,
    /// Members of a payload whose values a device signs once more, separated by commas (API of 2025).
    #[arg(long, value_name = "NAMES")]
    pub signed_keys: Option<String>,
    /// Rules for its messages from now on: the document; the files that it names are beside it.
    #[arg(long, value_name = "FILE", conflicts_with = "no_rules")]
    pub rules: Option<PathBuf>,
    /// No rules any more.
    #[arg(long)]
    pub no_rules: bool,
    /// The first batch that the rules hold for; the next one where nothing is said.
    #[arg(long, value_name = "HEIGHT")]
    pub from_height: Option<u64>,
    /// Whether nonces must ascend (API of 2025); it cannot be switched off again.
    #[arg(long, value_name = "YES")]
    pub strict_nonces: Option<bool>,
}

/// Which rules, on which messages.
#[derive(Debug, ClapArgs)]
pub struct RulesTest {
    /// The document; the files that it names are beside it.
    #[arg(long, value_name = "FILE", default_value = "rules.toml")]
    pub rules: PathBuf,
    /// Messages, one JSON object a line: `data`, and if need be `device` (0x…), `time_ms` (of its batch), `nonce`, `version`
    /// and `base64` (whether data is base64 of bytes).
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub json: bool,
}

/// Show projects, and change their settings.
#[derive(Debug, Subcommand)]
pub enum ProjectsCommand {
    /// Show the registered projects, or one.
    Show {
        /// URL of a node.
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
        url: String,
        /// The project.
        #[arg(value_name = "ID", value_parser = project_id)]
        project: Option<ProjectId>,
    },
    /// Write a first document of rules.
    Init {
        /// The file; it must not be there yet.
        #[arg(long, value_name = "FILE", default_value = "rules.toml")]
        rules: PathBuf,
    },
    /// Try rules out on messages of a file: what each stage does with each, and the tasks that come out.
    Test(RulesTest),
    /// Show which rules a project had, and from which batch on each held.
    History(OfProject),
    /// Change settings and rules of a project; signed by its owner.
    Set {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
        /// What to set.
        #[command(flatten)]
        settings: Settings,
    },
    /// Make and withdraw tokens that open a project's payloads to readers.
    #[command(subcommand)]
    Readers(ReadersCommand),
    /// Give a project to another owner; signed by its owner.
    Transfer {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
        /// The new owner's address.
        #[arg(value_name = "ADDRESS", value_parser = address)]
        to: Address,
    },
    /// Approve, as an operator, that somebody owns a project; it is registered when a majority has.
    Propose {
        /// The node's directory; its key signs.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// The project.
        #[arg(value_name = "ID", value_parser = project_id)]
        project: ProjectId,
        /// The owner's address.
        #[arg(value_name = "ADDRESS", value_parser = address)]
        owner: Address,
    },
}

/// Make and withdraw tokens that open a project's payloads to readers.
#[derive(Debug, Subcommand)]
pub enum ReadersCommand {
    /// Make a token, and print it: the network keeps its hash only. Signed by the project's owner.
    Add {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
    },
    /// Withdraw tokens, by their hashes as `lockstep projects show` has them, or all; signed by the project's owner.
    Remove {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
        /// Hashes: 0x and 64 hex digits.
        #[arg(value_name = "HASH", required_unless_present = "all")]
        hashes: Vec<Digest>,
        /// All of them.
        #[arg(long, conflicts_with = "hashes")]
        all: bool,
    },
}

/// Say which devices may submit to a project.
#[derive(Debug, Subcommand)]
pub enum DevicesCommand {
    /// Register devices for a project; signed by its owner.
    Add {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
        /// A file with a DID document, a DID or an address; devices that encrypt need the document.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<String>,
    },
    /// Take devices away from a project; their tokens are revoked; signed by its owner.
    Remove {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
        /// DIDs or addresses.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<String>,
    },
    /// Revoke all tokens that devices got until now; signed by the project's owner.
    Revoke {
        /// Who orders it.
        #[command(flatten)]
        owner: Owner,
        /// DIDs or addresses.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<String>,
    },
    /// List the devices of a project.
    List {
        /// Which.
        #[command(flatten)]
        of: OfProject,
    },
}

/// Show and replace a node's keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Show the public halves.
    Show {
        /// The node's directory.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
    },
    /// Replace a key; the one before it is kept beside it.
    #[command(subcommand)]
    Rotate(RotateCommand),
}

/// Which key.
#[derive(Debug, Subcommand)]
pub enum RotateCommand {
    /// The secret for devices that encrypt; the one before it stays good for tokens and messages.
    Server {
        /// The node's directory.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Take the secret from this file (base64 of 64 bytes), so that all nodes of a network have the same; a new one
        /// is made if not given.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Curve of its master key, `p256` for the secret of an older deployment; what config.toml says
        /// (devices.server_secret_curve) if not given.
        #[arg(long, value_name = "CURVE")]
        curve: Option<CurveArg>,
    },
    /// The key that tasks are signed with.
    Task {
        /// The node's directory.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Take the key from this file (64 hex digits); a new one is made if not given.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// The curve of a server's master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CurveArg {
    /// That of new deployments.
    Secp256k1,
    /// That of older ones.
    P256,
}

impl From<CurveArg> for SecretCurve {
    fn from(curve: CurveArg) -> Self {
        match curve {
            CurveArg::Secp256k1 => Self::Secp256k1,
            CurveArg::P256 => Self::P256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_window_is_a_number_or_for_ever() {
        assert_eq!(retry_window_ms("6000"), Ok(6_000));
        assert_eq!(retry_window_ms("forever"), Ok(RETRY_WINDOW_FOR_EVER_MS));
        for wrong in ["", "-1", "10s", "for ever"] {
            assert!(retry_window_ms(wrong).is_err(), "{wrong}");
        }
    }
}
