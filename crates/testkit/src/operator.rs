//! What operators type: the program's commands for membership, in one place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lockstep_types::NodeId;
use serde::Deserialize;

use crate::process::{Limits, run_limited, text_of};

/// Longest run of one command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// The operator of one node.
#[derive(Debug, Clone)]
pub struct Operator {
    binary: PathBuf,
    home: PathBuf,
}

/// What `members list --json` prints, as far as tests go by it.
#[derive(Debug, Clone, Deserialize)]
pub struct MemberList {
    /// How many changes were finished.
    #[serde(default)]
    pub changes: u64,
    /// Everyone who is or was a member.
    pub members: Vec<ListedMember>,
    /// The change that is under way.
    #[serde(default)]
    pub pending: Option<serde_json::Value>,
    /// Proposals that wait for approvals.
    #[serde(default)]
    pub proposals: Vec<ListedProposal>,
    /// Newcomers that ask to join.
    #[serde(default)]
    pub requests: Vec<ListedRequest>,
}

/// A member.
#[derive(Debug, Clone, Deserialize)]
pub struct ListedMember {
    /// Its id.
    pub id: NodeId,
    /// Its operator's name for it.
    pub name: String,
    /// `voter`, `observer` or `removed`.
    pub role: String,
}

/// A proposal.
#[derive(Debug, Clone, Deserialize)]
pub struct ListedProposal {
    /// Its id.
    pub id: String,
    /// What would change, for people.
    pub change: String,
    /// Who has approved it.
    pub approvals: Vec<NodeId>,
    /// How many approvals it needs.
    pub needed: usize,
}

/// A newcomer.
#[derive(Debug, Clone, Deserialize)]
pub struct ListedRequest {
    /// Names the request.
    pub id: String,
    /// The newcomer's name for itself.
    pub name: String,
}

impl MemberList {
    /// The member with a name, unless it was removed. Names of present members differ.
    pub fn present(&self, name: &str) -> Option<&ListedMember> {
        self.members.iter().find(|member| member.name == name && member.role != "removed")
    }
}

impl Operator {
    /// The operator of the node in `home`.
    pub fn of(binary: &Path, home: &Path) -> Self {
        Self { binary: binary.to_owned(), home: home.to_owned() }
    }

    /// Whether the program has these commands.
    pub async fn has_members(&self) -> bool {
        self.run(vec!["members".into(), "--help".into()]).await.is_ok()
    }

    /// `init --join`: makes the node and asks to join at the address of a member. `how` are the other arguments of
    /// `init`.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn ask_to_join(&self, address: &str, how: Vec<String>) -> Result<String, String> {
        let mut arguments = vec!["init".to_owned(), "--home".into(), self.home(), "--join".into(), address.to_owned()];
        arguments.extend(how);
        self.run(arguments).await
    }

    /// `members list`.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn list(&self) -> Result<MemberList, String> {
        let text = self.members(&["list", "--json"], &[]).await?;
        serde_json::from_str(&text).map_err(|error| format!("members list --json: {error}: {text}"))
    }

    /// `members approve`: of a proposal, or of a newcomer's request.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn approve(&self, id: &str) -> Result<String, String> {
        self.members(&["approve"], &[id]).await
    }

    /// `members promote`: approves that an observer becomes a voter.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn promote(&self, node: NodeId) -> Result<String, String> {
        self.members(&["promote"], &[&node.0.to_string()]).await
    }

    /// `members demote`: approves that a voter becomes an observer.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn demote(&self, node: NodeId) -> Result<String, String> {
        self.members(&["demote"], &[&node.0.to_string()]).await
    }

    /// `members remove`: approves that a member leaves for good.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn remove(&self, node: NodeId) -> Result<String, String> {
        self.members(&["remove"], &[&node.0.to_string()]).await
    }

    /// `members leave`: the node's own wish to leave.
    ///
    /// # Errors
    /// What the command printed.
    pub async fn leave(&self) -> Result<String, String> {
        self.members(&["leave"], &[]).await
    }

    fn home(&self) -> String {
        self.home.display().to_string()
    }

    async fn members(&self, command: &[&str], rest: &[&str]) -> Result<String, String> {
        let mut arguments = vec!["members".to_owned()];
        arguments.extend(command.iter().map(|&word| word.to_owned()));
        arguments.extend(["--home".to_owned(), self.home()]);
        arguments.extend(rest.iter().map(|&word| word.to_owned()));
        self.run(arguments).await
    }

    /// Runs a command on a thread of its own, so that nothing else of the test stands still.
    async fn run(&self, arguments: Vec<String>) -> Result<String, String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments);
        let run = move || {
            let output = run_limited(&mut command, Limits::default(), COMMAND_DEADLINE);
            if output.status.success() {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            } else {
                Err(format!("{command:?} ({}): {}", output.status, text_of(&output).trim()))
            }
        };
        tokio::task::spawn_blocking(run).await.expect("a command that ends in time")
    }
}
