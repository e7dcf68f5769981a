//! The command line.

mod registry;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use lockstep_node::backup::BackupLocation;
use lockstep_types::{Address, OutputName, ProjectId};

pub use self::registry::{
    DevicesArg, DevicesCommand, KeysCommand, OfProject, Owner, ProjectArg, ProjectsCommand, ReadersCommand,
    RotateCommand, RulesTest, Settings, project_id,
};

/// A decentralized sequencer for DePIN: puts the messages of devices in one order and hands them on as tasks.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, propagate_version = true)]
pub struct Args {
    /// What to log: error, warn, info, debug, trace, or by part, as in `info,lockstep_node=debug`.
    #[arg(long, global = true, env = "LOCKSTEP_LOG", default_value = "info")]
    pub log: String,
    /// Log in JSON, for a collector.
    #[arg(long, global = true, env = "LOCKSTEP_LOG_JSON")]
    pub log_json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a node's home, and form or join a network's genesis.
    Init(Init),
    /// Run the node of a home, until Ctrl-C or SIGTERM.
    Start(Start),
    /// Show how a node and its network are.
    Status(Status),
    /// Show and change who belongs to the network.
    Members(Members),
    /// Show projects, and change their settings.
    #[command(subcommand)]
    Projects(ProjectsCommand),
    /// Say which devices may submit to a project.
    #[command(subcommand)]
    Devices(DevicesCommand),
    /// Show and replace a node's keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Copy a running node's state into a directory or a bucket, or look at the backups there.
    Backup(Backup),
    /// Make a new node, in a new epoch, out of a backup.
    Restore(Restore),
    /// Go on without a majority that is lost for good.
    Recover(Recover),
    /// Make a damaged state anew, from the log or from another member.
    Rebuild(Rebuild),
    /// Look after the stores that this node feeds.
    Outputs(Outputs),
    /// Sign a message as a device, submit it, and print the answer.
    Submit(Submit),
    /// Sign a message as a device, and print the request body for curl.
    Sign(Message),
    /// Print final tasks as they come.
    Tail(Tail),
    /// Check a whole history, or one proof, against the genesis.
    Verify(Verify),
    /// Measure how many messages a network acknowledges.
    Bench(Bench),
    /// Run a network of several nodes on this machine, to try things out.
    Testnet(Testnet),
}

/// Without `--network` or `--genesis`: makes keys, store, config.toml and member.json (the public part, for the
/// other operators). With `--network` and every operator's member.json: forms the genesis, the same for whoever runs
/// it over the same parts. With `--genesis`: takes one that another operator formed.
#[derive(Debug, ClapArgs)]
pub struct Init {
    /// The node's directory.
    #[arg(long, value_name = "DIR")]
    pub home: PathBuf,
    /// What the node is like.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Also form a network of this node alone.
    #[arg(long, conflicts_with_all = ["network", "genesis"])]
    pub single: bool,
    /// Form the genesis of a network with this name from the parts given with --member.
    #[arg(long, value_name = "NAME", requires = "member")]
    pub network: Option<String>,
    /// An operator's member.json; once for each member, this node included.
    #[arg(long, value_name = "FILE", requires = "network")]
    pub member: Vec<PathBuf>,
    /// Take this genesis.
    #[arg(long, value_name = "FILE", conflicts_with = "network")]
    pub genesis: Option<PathBuf>,
    /// Ask a running network to be admitted, at this address of a node (with /p2p/<peer id> its key is checked too).
    #[arg(long, value_name = "MULTIADDR", conflicts_with_all = ["network", "genesis", "single"])]
    pub join: Option<String>,
    /// Register a project (may be given several times); messages of others are refused. The owner is the address of a
    /// key: only what it signs changes the project's settings and devices. With --single it is this node's key if not
    /// given.
    #[arg(long, value_name = "ID[=OWNER]")]
    pub project: Vec<ProjectArg>,
    /// Which devices the projects take: those that are registered and approved, those that the owner lists, or any key
    /// that signs.
    #[arg(long, value_name = "WHICH", default_value = "registered")]
    pub devices: DevicesArg,
    /// Take messages without a signature.
    #[arg(long)]
    pub allow_unsigned: bool,
    /// Take messages of projects that nobody registered: for test networks.
    #[arg(long)]
    pub allow_unknown_projects: bool,
    /// Show all payloads to anyone: for test networks.
    #[arg(long)]
    pub public_payloads: bool,
}

/// What a new node is like.
#[derive(Debug, ClapArgs)]
pub struct NodeArgs {
    /// Name of the node: 1 to 64 of a-z, 0-9, '-', '_' and '.'.
    #[arg(long, default_value = "node")]
    pub name: String,
    /// Multiaddress at which the other nodes reach this one.
    #[arg(long, value_name = "MULTIADDR", default_value = "/ip4/127.0.0.1/tcp/9100")]
    pub p2p_address: String,
    /// Multiaddress to listen on for nodes; the port of --p2p-address on all interfaces if not given.
    #[arg(long, value_name = "MULTIADDR")]
    pub p2p_listen: Option<String>,
    /// URL at which devices and readers reach this node.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
    pub http_url: String,
    /// Address to listen on for devices and readers.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:9000")]
    pub http_listen: SocketAddr,
    /// Take the key that tasks are signed with from this file; operators who publish to one store share it.
    #[arg(long, value_name = "FILE")]
    pub task_key_file: Option<PathBuf>,
}

/// Run the node of a home.
#[derive(Debug, ClapArgs)]
pub struct Start {
    /// The node's directory.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    pub home: PathBuf,
}

/// Show and change who belongs to the network. The commands talk to the node that runs in the home.
#[derive(Debug, ClapArgs)]
pub struct Members {
    /// What to do.
    #[command(subcommand)]
    pub command: MembersCommand,
}

/// What to do with members. A change is made when a majority of the voters' operators have approved it.
#[derive(Debug, Subcommand)]
pub enum MembersCommand {
    /// List members, proposals that wait for approvals, and newcomers that ask to join.
    List {
        /// The node's directory.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Approve a proposal, or a newcomer's request, by its id (a unique beginning is enough).
    Approve {
        /// The node's directory; its key signs.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Id of the proposal or request, from `members list`.
        id: String,
    },
    /// Approve that the node of a member.json is admitted, as an observer.
    Propose {
        /// The node's directory; its key signs.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// The newcomer's member.json.
        #[arg(long, value_name = "FILE")]
        admit: PathBuf,
    },
    /// Approve that an observer becomes a voter.
    Promote(OfMember),
    /// Approve that a voter becomes an observer.
    Demote(OfMember),
    /// Approve that a member leaves, for good.
    Remove(OfMember),
    /// Ask the others to let this node go: approves its own removal.
    Leave {
        /// The node's directory; its key signs.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
    },
}

/// A change of one member.
#[derive(Debug, ClapArgs)]
pub struct OfMember {
    /// The node's directory; its key signs.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    pub home: PathBuf,
    /// Id of the member that changes, from `members list`.
    pub node: u64,
}

/// The node makes the backup itself, while it works on. Only files that are not there yet are copied. There are no keys
/// in a backup, no log and no vote, and none of the node's settings.
///
/// PLACE is a directory, or s3://BUCKET/PREFIX in a store that speaks S3. Keys and endpoint of a bucket are taken from
/// the environment of the process that uses it, never from the command line: of the node (`lockstep start`) for --to, of
/// this command for --list and --check. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
/// AWS_ENDPOINT_URL (for others than AWS), AWS_ALLOW_HTTP=true (for an endpoint without TLS).
#[derive(Debug, ClapArgs)]
pub struct Backup {
    /// The node's directory; it has to run.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME", required_unless_present_any = ["list", "check"])]
    pub home: Option<PathBuf>,
    /// Where to: a directory, which is made when missing and which the node's user writes to, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE", required_unless_present_any = ["list", "check"])]
    pub to: Option<BackupLocation>,
    /// List the backups there.
    #[arg(long, value_name = "PLACE", conflicts_with = "to")]
    pub list: Option<BackupLocation>,
    /// Read all backups there and compare them with their checksums.
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["to", "list"])]
    pub check: Option<BackupLocation>,
}

/// Makes a new home with a new key and store, and the state of a backup, in a new epoch: what the network ordered after
/// the backup is lost, and nodes and outputs of the old epoch refuse this one until they are told.
#[derive(Debug, ClapArgs)]
pub struct Restore {
    /// Directory with backups, or s3://BUCKET/PREFIX; keys and endpoint are taken from this command's environment, as
    /// `lockstep backup --help` says.
    #[arg(long, value_name = "PLACE")]
    pub from: BackupLocation,
    /// Take the newest backup that is not above this height, instead of the newest.
    #[arg(long)]
    pub height: Option<u64>,
    /// Directory of the new node.
    #[arg(long, value_name = "DIR")]
    pub home: PathBuf,
    /// What the node is like.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// For when a majority of the voters is lost for good, or no member can apply the log any further. This node applies all of its log and goes on alone, in a new
/// epoch. What the lost voters acknowledged and this node had not received is lost. The old store is kept.
#[derive(Debug, ClapArgs)]
pub struct Recover {
    /// The node's directory; it must not run.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    pub home: PathBuf,
    /// Accept that acknowledged messages may be lost.
    #[arg(long = "unsafe")]
    pub accept_loss: bool,
    /// Also where other voters answer: they will be shut out.
    #[arg(long)]
    pub even_so: bool,
    /// Goes on without this entry of the log, which cannot be applied, and all that are behind it. Without this nothing is
    /// done, but to say which entry it is and what would be left out.
    #[arg(long, value_name = "ENTRY")]
    pub stop_before: Option<u64>,
}

/// Checks the log of a stopped node and puts its state aside, so that the next start makes it anew.
#[derive(Debug, ClapArgs)]
pub struct Rebuild {
    /// The node's directory; it must not run.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    pub home: PathBuf,
}

/// Look after the stores that a node feeds.
#[derive(Debug, ClapArgs)]
pub struct Outputs {
    /// What to do.
    #[command(subcommand)]
    pub command: OutputsCommand,
}

/// An output of a node.
#[derive(Debug, ClapArgs)]
pub struct OfOutput {
    /// The node's directory.
    #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
    pub home: PathBuf,
    /// Name of the output in config.toml.
    pub name: OutputName,
}

/// What to do with outputs.
#[derive(Debug, Subcommand)]
pub enum OutputsCommand {
    /// Take an output over that an earlier epoch of the network fed.
    Adopt {
        /// The node's directory; it has to run.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Name of the output in config.toml.
        name: OutputName,
        /// Also where it has tasks that are not part of this epoch's history. They stay, and the tasks that get their
        /// numbers in this epoch are never published to it.
        #[arg(long)]
        accept_ahead: bool,
    },
    /// Fill an output's gaps out of backups: tasks that the network forgot before the output had them.
    ///
    /// The node reads the backups, checks that they are of this history, signs the tasks and inserts them. Keys and
    /// endpoint of a bucket are taken from the environment of the node, as `lockstep backup --help` says. It can be
    /// interrupted and begun again; what is there stays.
    Refill {
        /// The node's directory; it has to run.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Name of the output in config.toml.
        name: OutputName,
        /// Where the backups are: a directory that the node's user can read, or s3://BUCKET/PREFIX.
        #[arg(long, value_name = "PLACE")]
        from: BackupLocation,
    },
    Add(Box<crate::output_add::OutputAdd>),
    Audit(crate::output_audit::OutputAudit),
    /// Show how the outputs of a node are, and which tasks they refused.
    Status {
        /// The node's directory; it has to run.
        #[arg(long, value_name = "DIR", env = "LOCKSTEP_HOME")]
        home: PathBuf,
        /// Only this output.
        name: Option<OutputName>,
        /// Show how it fills, until it has every final task.
        #[arg(long, requires = "name")]
        watch: bool,
    },
    /// Try again what an output refused. In the layout sprout a refused task holds its project up until then.
    Retry(OfOutput),
    /// Publish nothing to an output until `resume`, also after a restart. An output of the network is held up at all of
    /// its nodes, whichever it is said to.
    Pause(OfOutput),
    /// Go on publishing to an output. One that was removed is added anew.
    ///
    /// An output that was removed begins as one that the network never had: where its store says how far it is, and
    /// otherwise at the oldest batch that is kept.
    Resume(OfOutput),
    /// Remove an output from the network: nobody feeds it any more, and nothing is kept for it.
    ///
    /// It is written into the log, so it holds at all nodes, whichever it is said to, and also where config.toml still
    /// names the output: take it out there. What was published stays in its store. The network forgets how far the output
    /// was and where its tasks are. `lockstep outputs resume` adds it anew. An output of one node alone is removed by
    /// taking it out of that node's config.toml.
    Remove(OfOutput),
    /// Print what an operator of W3bstream has to set to read an output in PostgreSQL.
    #[cfg(feature = "postgres")]
    W3bstream {
        /// Which.
        #[command(flatten)]
        of: OfOutput,
        /// The role that reads: see `lockstep outputs reader`.
        #[arg(long, default_value = "w3bstream")]
        role: String,
    },
    /// Make a role that may read an output in PostgreSQL.
    #[cfg(feature = "postgres")]
    Reader(crate::output_reader::OutputReader),
}

/// Show how a node is.
#[derive(Debug, ClapArgs)]
pub struct Status {
    /// The node.
    #[arg(long, env = "LOCKSTEP_URL", default_value = "http://127.0.0.1:9000")]
    pub url: String,
    /// Print the JSON of the node's answer.
    #[arg(long)]
    pub json: bool,
}

/// A device's message.
#[derive(Debug, Clone, ClapArgs)]
pub struct Message {
    /// File with the device's private key, 64 hex digits.
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// Make the key file if it is not there.
    #[arg(long)]
    pub new_key: bool,
    /// The project.
    #[arg(long, value_name = "ID")]
    pub project: u64,
    /// The project's version.
    #[arg(long, default_value = "0.1")]
    pub project_version: String,
    /// The payload.
    #[arg(long)]
    pub data: String,
}

/// Sign and submit.
#[derive(Debug, ClapArgs)]
pub struct Submit {
    /// A node; give several to try the next one when one does not answer.
    #[arg(long, env = "LOCKSTEP_URL", value_delimiter = ',', default_value = "http://127.0.0.1:9000")]
    pub url: Vec<String>,
    /// How long to try, in seconds.
    #[arg(long, default_value_t = 30)]
    pub timeout: u64,
    /// Keep the message in this file first, then send what waits there, oldest first. Where no node can be reached in
    /// time it stays for the next run. Put a time or counter into the data: equal ones that wait are refused.
    #[arg(long, value_name = "FILE")]
    pub outbox: Option<PathBuf>,
    /// Submit as a gateway over the peer-to-peer port of --peer, with the key in this file (64 hex digits; --new-key makes
    /// it if it is not there). The node's operator has to admit the key in config.toml.
    #[arg(long, value_name = "FILE", requires = "peer", conflicts_with = "outbox")]
    pub gateway_key: Option<PathBuf>,
    /// The node's address for that (with /p2p/<peer id> its key is checked too).
    #[arg(long, value_name = "MULTIADDR", requires = "gateway_key")]
    pub peer: Option<String>,
    /// The message.
    #[command(flatten)]
    pub message: Message,
}

/// Prints final tasks as JSON, one a line, each once and in order, for ever. When a node goes away it goes on at the next.
#[derive(Debug, ClapArgs)]
pub struct Tail {
    /// URLs of nodes, separated by commas.
    #[arg(long = "url", value_name = "URL", value_delimiter = ',', default_value = "http://127.0.0.1:9000")]
    pub urls: Vec<String>,
    /// Only this project's tasks.
    #[arg(long, value_name = "ID", value_parser = registry::project_id)]
    pub project: Option<ProjectId>,
    /// Only tasks after this number. Without it, `--from-height` or `--all`: only those that become final from now on.
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["from_height", "all"])]
    pub after: Option<u64>,
    /// From the first task of this batch on.
    #[arg(long, value_name = "HEIGHT", conflicts_with = "all")]
    pub from_height: Option<u64>,
    /// From the oldest task that is kept.
    #[arg(long)]
    pub all: bool,
    /// File with a reader token, for the payloads of a project that is not public.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// End after so many tasks.
    #[arg(long, value_name = "COUNT")]
    pub count: Option<u64>,
}

/// Reads everything: files, records, hashes, signatures, certificates. Exit code 0: good; 1: damaged or wrong; 2: it
/// could not be checked.
#[derive(Debug, ClapArgs)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["file", "home", "url", "proof"])))]
pub struct Verify {
    /// A blob out of a store, or the answer of `GET /api/proofs/{message id}`: which one is seen from what is in it.
    #[arg(value_name = "FILE", requires = "genesis")]
    pub file: Option<PathBuf>,
    /// A stopped node's directory: its files, its log and its state, with the history in it. Nothing is written.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["genesis", "data", "task_key"])]
    pub home: Option<PathBuf>,
    /// A running node: the history that it hands over.
    #[arg(long, value_name = "URL", requires = "genesis", conflicts_with_all = ["data", "task_key"])]
    pub url: Option<String>,
    /// As FILE, for older scripts.
    #[arg(long, value_name = "FILE", requires = "genesis")]
    pub proof: Option<PathBuf>,
    /// The network's genesis, from somebody whom you trust.
    #[arg(long, value_name = "FILE")]
    pub genesis: Option<PathBuf>,
    /// The network's epoch.json, from somebody whom you trust; only where a backup was restored or a lost majority
    /// given up.
    #[arg(long, value_name = "FILE", requires = "genesis")]
    pub epochs: Option<PathBuf>,
    /// The message's payload, to be compared with the proof.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Address of the key that the tasks of a blob have to be signed with.
    #[arg(long, value_name = "ADDRESS")]
    pub task_key: Option<Address>,
    /// Take rules of `apply` up to this number, where an upgrade was rehearsed.
    #[arg(long, value_name = "NUMBER", default_value_t = lockstep_node::RULES_NEWEST, hide = true)]
    pub rules_known: u32,
}

/// Closed loop: every client sends its next message when the last one was acknowledged. 64 device keys; messages are
/// signed beforehand. Prints JSON.
#[derive(Debug, ClapArgs)]
pub struct Bench {
    /// Nodes, separated by commas; clients are spread over them.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:9000")]
    pub urls: Vec<String>,
    /// Clients.
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Seconds before them that are not.
    #[arg(long, default_value_t = 2)]
    pub warmup: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 256)]
    pub payload: usize,
    /// The messages' project.
    #[arg(long, default_value_t = 1)]
    pub project: u64,
}

/// Run a network on this machine.
#[derive(Debug, ClapArgs)]
pub struct Testnet {
    /// What to do with it.
    #[command(subcommand)]
    pub command: TestnetCommand,
}

/// What to do with a test network.
#[derive(Debug, Subcommand)]
pub enum TestnetCommand {
    /// Start it, and run it until Ctrl-C.
    Up(Up),
}

/// Starts real node processes on 127.0.0.1, writes DIR/testnet.json once a leader is elected, and prints `ready`.
/// Anybody may write to such a network and read all of it: it is for trying things out.
#[derive(Debug, ClapArgs)]
pub struct Up {
    /// How many nodes; one is a network too.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// Directory of the network; one that exists is continued.
    #[arg(long, value_name = "DIR")]
    pub home: PathBuf,
    /// HTTP port of the first node, the others follow; peer-to-peer ports begin 100 higher. 0: any free ports.
    #[arg(long, value_name = "PORT", default_value_t = 9001)]
    pub http_base_port: u16,
    /// Also publish to this PostgreSQL, in the tables that W3bstream reads.
    #[arg(long, value_name = "DSN")]
    pub postgres: Option<String>,
    /// Run a fleet of this many simulated devices.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub devices: usize,
    /// Messages a second of the whole fleet.
    #[arg(long, value_name = "R", default_value_t = 10.0)]
    pub rate: f64,
    /// Stop after this many seconds.
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<u64>,
}
