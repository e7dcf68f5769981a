//! Administration of a running node: a Unix socket in its home, so that whoever may open it (the operator's user)
//! administers, and nobody else can, be it over the network or as another user of the machine. One JSON object a line
//! each way, one request a connection.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockstep_api::views::MembersView;
use lockstep_types::{Approval, OutputName, TaskNumber, proto};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::adopt::Adopter;
use crate::audit::{AuditProgress, Audits};
use crate::backup::{BackupLocation, BackupProgress, Backups};
use crate::error::NodeError;
use crate::home::Home;
use crate::operator::Operator;
use crate::output_desk::{OutputDesk, OutputReport};
use crate::refill::{RefillProgress, Refills};

/// Longest request or answer in bytes.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What an operator asks of the running node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// Who belongs to the network, what is proposed, and who asks to join.
    Members,
    /// Count this approval: protobuf, hex.
    Approve(String),
    /// Begin a backup to this place; a directory is given by an absolute path.
    Backup(BackupLocation),
    /// How far the newest backup is.
    BackupProgress,
    /// Take an output of an earlier epoch over.
    Adopt {
        /// Its name in config.toml.
        output: OutputName,
        /// Also where it has tasks that are not part of this epoch's history.
        accept_ahead: bool,
    },
    /// Begin to fill an output's gaps out of backups.
    Refill {
        /// Its name in config.toml.
        output: OutputName,
        /// Where the backups are; a directory is given by an absolute path.
        from: BackupLocation,
    },
    /// How far the newest refill is.
    RefillProgress,
    /// Begin to compare what an output's store holds with the chain.
    Audit {
        /// Its name in config.toml.
        output: OutputName,
        /// The task to begin with; the first one if not given.
        from: Option<TaskNumber>,
    },
    /// How far the newest audit of an output is.
    AuditProgress {
        /// Its name in config.toml.
        output: OutputName,
    },
    /// End the audit of an output.
    StopAudit {
        /// Its name in config.toml.
        output: OutputName,
    },
    /// How the outputs of this node are.
    Outputs,
    /// Publish nothing to an output until told.
    Pause {
        /// Its name in config.toml.
        output: OutputName,
    },
    /// Go on, or add an output anew that was removed.
    Resume {
        /// Its name in config.toml.
        output: OutputName,
    },
    /// Remove an output from the network.
    Remove {
        /// Its name.
        output: OutputName,
    },
    /// Try again what an output has refused.
    Retry {
        /// Its name in config.toml.
        output: OutputName,
    },
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminAnswer {
    /// To [`AdminRequest::Members`].
    Members(Box<MembersView>),
    /// To [`AdminRequest::BackupProgress`]; `None` where there was no backup since the start.
    Backup(Option<BackupProgress>),
    /// It is done: a sentence.
    Adopted(String),
    /// To [`AdminRequest::RefillProgress`]; `None` where there was no refill since the start.
    Refill(Option<RefillProgress>),
    /// To [`AdminRequest::AuditProgress`]; `None` where there was no audit of it since the start.
    Audit(Option<Box<AuditProgress>>),
    /// To [`AdminRequest::Outputs`].
    Outputs(Vec<OutputReport>),
    /// It is done.
    Done,
    /// It is not done: a sentence.
    Error(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No node runs there.
    #[error("no node runs in {0}: start it with `lockstep start --home {0}` ({1})")]
    NotRunning(String, std::io::Error),
    /// The node went away, or speaks another version.
    #[error("the node gave no answer: {0}")]
    NoAnswer(String),
    /// The node refuses.
    #[error("{0}")]
    Refused(String),
}

/// Asks the node that runs in `home`.
///
/// # Errors
/// With a sentence for the operator.
pub async fn administer(home: &Home, request: &AdminRequest) -> Result<AdminAnswer, AdminError> {
    let no_answer = |e: &dyn std::fmt::Display| AdminError::NoAnswer(e.to_string());
    let path = home.admin_socket();
    let stream =
        UnixStream::connect(&path).await.map_err(|e| AdminError::NotRunning(home.path().display().to_string(), e))?;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_string(request).map_err(|e| no_answer(&e))?;
    line.push('\n');
    writer.write_all(line.as_bytes()).await.map_err(|e| no_answer(&e))?;
    let mut answer = String::new();
    let read = BufReader::new(reader.take(LINE_BYTES_MAX)).read_line(&mut answer).await;
    read.map_err(|e| no_answer(&e))?;
    match serde_json::from_str(&answer).map_err(|e| no_answer(&e))? {
        AdminAnswer::Error(reason) => Err(AdminError::Refused(reason)),
        answer => Ok(answer),
    }
}

/// Opens the socket. One that a node left behind is replaced: the store's lock has made sure that no node runs.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, NodeError> {
    let failed = |e: std::io::Error| NodeError::Config(format!("{}: {e}", path.display()));
    if path.exists() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Those who carry out requests.
pub(crate) struct Desk {
    pub operator: Operator,
    pub backups: Backups,
    pub adopter: Adopter,
    pub refills: Refills,
    pub audits: Audits,
    pub outputs: OutputDesk,
}

/// Answers the operator until `stop`. One request at a time is plenty.
pub(crate) async fn run_admin(listener: Arc<UnixListener>, desk: Arc<Desk>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let answered = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &desk));
                let result = tokio::select! {
                    () = stop.cancelled() => return,
                    result = answered => result,
                };
                if let Ok(Err(error)) = result {
                    tracing::debug!(%error, "an administration request was not answered");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the administration socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, desk: &Desk) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => carry_out(request, desk).await.unwrap_or_else(AdminAnswer::Error),
        Err(error) => AdminAnswer::Error(format!("the request cannot be read: {error}")),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await
}

async fn carry_out(request: AdminRequest, desk: &Desk) -> Result<AdminAnswer, String> {
    let operator = &desk.operator;
    match request {
        AdminRequest::Members => Ok(AdminAnswer::Members(Box::new(operator.view(true)))),
        AdminRequest::Approve(record) => {
            let bytes = hex::decode(record).map_err(|e| e.to_string())?;
            let approval = proto::Approval::decode(&bytes[..]).map_err(|e| e.to_string())?;
            operator.approve(Approval::from_proto(approval).map_err(|e| e.to_string())?).await?;
            Ok(AdminAnswer::Done)
        }
        AdminRequest::Backup(to) => desk.backups.start(&to).map(|()| AdminAnswer::Done),
        AdminRequest::BackupProgress => Ok(AdminAnswer::Backup(desk.backups.progress())),
        AdminRequest::Adopt { output, accept_ahead } => {
            desk.adopter.adopt(&output, accept_ahead).await.map(AdminAnswer::Adopted)
        }
        AdminRequest::Refill { output, from } => desk.refills.start(&output, from).map(|()| AdminAnswer::Done),
        AdminRequest::RefillProgress => Ok(AdminAnswer::Refill(desk.refills.progress())),
        AdminRequest::Audit { output, from } => desk.audits.start(&output, from).map(|()| AdminAnswer::Done),
        AdminRequest::AuditProgress { output } => Ok(AdminAnswer::Audit(desk.audits.progress(&output).map(Box::new))),
        AdminRequest::StopAudit { output } => {
            desk.audits.stop(&output);
            Ok(AdminAnswer::Done)
        }
        AdminRequest::Outputs => Ok(AdminAnswer::Outputs(desk.outputs.reports())),
        AdminRequest::Pause { output } => desk.outputs.pause(&output, true).await.map(|()| AdminAnswer::Done),
        AdminRequest::Resume { output } => desk.outputs.pause(&output, false).await.map(|()| AdminAnswer::Done),
        AdminRequest::Remove { output } => desk.outputs.remove(&output).await.map(|()| AdminAnswer::Done),
        AdminRequest::Retry { output } => desk.outputs.retry(&output).map(|()| AdminAnswer::Done),
    }
}
