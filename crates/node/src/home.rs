//! A node's home directory: what `lockstep init` makes and `lockstep start` reads.
//!
//! ```text
//! config.toml    this node's settings
//! node.key       its private key, hex (0600)
//! server.secret  the keys for devices that encrypt, base64 (0600); operators of one network may share it
//! task.key       the key that tasks are signed with, hex (0600); operators of one network share it
//! member.json    its public part, for the other operators
//! genesis.json   the network
//! join.json      where a newcomer asks to join
//! admitted.json  the id that it got, and the members that it found
//! epoch.json     restores and forced recoveries of the network; missing while there were none
//! peers.json     where members were found lately
//! admin.sock     where the operator's commands reach the running node
//! conflict-*.hex proof that a voter signed two batches at one height
//! task-states.sqlite  what became of tasks on the chain, where one is followed; made again when it is missing
//! w3bstream.key  its key on W3bstream's network, hex (0600), where tasks are announced there
//! w3bstream.json up to which task they were
//! store/         log and state
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_identity::{Curve, ServerSecret};
use lockstep_outputs::Owner;
use lockstep_store::home::{StoreHome, replace_file, write_new_file};
use lockstep_types::{Epoch, EpochMember, Epochs, Genesis, Incarnation, Member, NodeId, SigningKey};
use rand::SeedableRng as _;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::error::NodeError;
use crate::features::BUILT_WITH;
use crate::recover;
use crate::secrets::SERVER_SECRET_FILE;

/// A home directory. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

/// What tells a new member from the others.
#[derive(Debug, Clone)]
pub struct MemberOptions {
    /// The operator's name for the node.
    pub name: String,
    /// Multiaddress at which the others reach it.
    pub p2p: String,
    /// URL of its HTTP interface.
    pub http: String,
    /// The node's key; a random one is made where none is given.
    pub node_key: Option<SigningKey>,
}

/// `join.json`: where a newcomer asks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinFile {
    /// Multiaddresses of members, as the operator gave them.
    pub bootstrap: Vec<String>,
}

/// `admitted.json`: under which id a newcomer was admitted, and whom it found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    /// Its id.
    pub node: NodeId,
    /// Members at that time.
    pub members: Vec<(NodeId, Member)>,
}

/// A home that waits to be admitted.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Where to ask.
    pub join: JoinFile,
    /// Who asks.
    pub member: Member,
    /// Its key.
    pub key: SigningKey,
    /// The network.
    pub genesis: Genesis,
}

/// A home that was read and found whole.
#[derive(Debug)]
pub struct Opened {
    /// Settings.
    pub config: Config,
    /// The node's key.
    pub node_key: SigningKey,
    /// The key that tasks are signed with.
    pub task_key: SigningKey,
    /// The network.
    pub genesis: Genesis,
    /// Its epochs after the first.
    pub epochs: Epochs,
    /// This node's id in it.
    pub node: NodeId,
    /// Members as this node found them when it joined; empty for a first member.
    pub found: Vec<(NodeId, Member)>,
    /// Log and state.
    pub store: StoreHome,
}

/// A node's id, itself, and the members that it knew when it became one.
type Place = (NodeId, Member, Vec<(NodeId, Member)>);

pub(crate) fn config_error(path: &Path, reason: impl std::fmt::Display) -> NodeError {
    NodeError::Config(format!("{}: {reason}", path.display()))
}

/// Makes a new random key.
///
/// # Errors
/// If the system gives no randomness.
pub fn random_key() -> Result<SigningKey, NodeError> {
    loop {
        // All but one in 2^128 random scalars are valid.
        if let Ok(key) = SigningKey::from_bytes(random_bytes()?) {
            return Ok(key);
        }
    }
}

/// Makes a new server secret, as its file has it.
///
/// # Errors
/// If the system gives no randomness.
pub fn random_server_secret() -> Result<Zeroizing<String>, NodeError> {
    let mut random = rand::rngs::StdRng::from_seed(random_bytes()?);
    let secret = ServerSecret::generate(Curve::Secp256k1, &mut random);
    Ok(Zeroizing::new(format!("{}\n", *secret.to_base64())))
}

pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], NodeError> {
    use rand::TryRng as _;
    let mut bytes = [0; N];
    let failed = |e| NodeError::Config(format!("the system gives no randomness: {e}"));
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

impl Opened {
    /// The epoch that the network is in.
    pub fn epoch(&self) -> Epoch {
        self.epochs.current()
    }

    /// Whose tasks this node's outputs get.
    ///
    /// # Errors
    /// If the genesis has no text.
    pub fn owner(&self) -> Result<Owner, NodeError> {
        let (network, epoch) = (self.genesis.id()?, self.epoch());
        Ok(Owner { network, epoch, first_task_number: self.genesis.params.first_task_number })
    }
}

impl Home {
    /// The home at a path; nothing is read yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or directory in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether a node runs in it.
    pub fn is_running(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.admin_socket()).is_ok()
    }

    fn write_new(&self, name: &str, text: &str, mode: u32) -> Result<(), NodeError> {
        let path = self.file(name);
        write_new_file(&path, text, mode).map_err(|e| config_error(&path, e))
    }

    fn read(&self, name: &str) -> Result<String, NodeError> {
        let path = self.file(name);
        fs::read_to_string(&path).map_err(|e| config_error(&path, e))
    }

    /// The key that readers verify tasks with.
    ///
    /// # Errors
    /// If the task key cannot be read.
    pub fn task_public_key(&self) -> Result<lockstep_types::PublicKey, NodeError> {
        Ok(self.read_key("task.key")?.public())
    }

    fn read_key(&self, name: &str) -> Result<SigningKey, NodeError> {
        let text = self.read(name)?;
        SigningKey::from_hex(&text).map_err(|_| config_error(&self.file(name), "is not a private key (64 hex digits)"))
    }

    /// Makes a home: keys, store, settings, and the public part for the other operators. A task key is made unless
    /// one is given.
    ///
    /// # Errors
    /// If there is one already: a key or store is never overwritten.
    pub fn create(
        &self,
        config: &Config,
        member: MemberOptions,
        task_key: Option<&SigningKey>,
    ) -> Result<Member, NodeError> {
        fs::create_dir_all(&self.path).map_err(|e| config_error(&self.path, e))?;
        let there: Vec<&str> =
            ["config.toml", "node.key", "store"].into_iter().filter(|name| self.file(name).exists()).collect();
        if let Some(name) = there.first() {
            let reason = if self.file("member.json").exists() {
                format!("there is a node here already ({name} exists)")
            } else {
                // It is written last, so nobody knows this node yet.
                format!("an earlier `lockstep init` did not end here: remove {} and run it again", there.join(", "))
            };
            return Err(config_error(&self.path, reason));
        }
        let node_key = member.node_key.clone().map_or_else(random_key, Ok)?;
        let task_key = task_key.cloned().map_or_else(random_key, Ok)?;
        let incarnation = Incarnation(random_bytes()?);
        self.write_new("node.key", &hex_line(&node_key), 0o600)?;
        if !self.file("task.key").exists() {
            self.write_new("task.key", &hex_line(&task_key), 0o600)?;
        }
        if !self.file(SERVER_SECRET_FILE).exists() {
            self.write_new(SERVER_SECRET_FILE, &random_server_secret()?, 0o600)?;
        }
        StoreHome::create(&self.file("store"), incarnation)?;
        self.write_new("config.toml", &config.to_text()?, 0o644)?;
        let member = Member {
            name: member.name,
            public_key: format!("0x{}", hex_of(&node_key.public().compressed())),
            incarnation,
            p2p: member.p2p,
            http: member.http,
        };
        let text = serde_json::to_string_pretty(&member).map_err(|e| config_error(&self.path, e))?;
        self.write_new("member.json", &(text + "\n"), 0o644)?;
        Ok(member)
    }

    /// Keeps what a newcomer needs until it is admitted.
    ///
    /// # Errors
    /// If this program cannot take part in that network, or the files cannot be written, or are there.
    pub fn install_join(&self, genesis: &Genesis, join: &JoinFile) -> Result<(), NodeError> {
        let text = serde_json::to_string_pretty(join).map_err(|e| config_error(&self.path, e))?;
        BUILT_WITH.check_network(&genesis.params)?;
        self.write_new("join.json", &(text + "\n"), 0o644)?;
        self.write_new("genesis.json", &genesis.to_text()?, 0o644)
    }

    /// What a newcomer that is not admitted yet has to ask; `None` for a member.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn waiting(&self) -> Result<Option<Waiting>, NodeError> {
        if !self.file("join.json").exists() || self.file("admitted.json").exists() {
            return Ok(None);
        }
        let join =
            serde_json::from_str(&self.read("join.json")?).map_err(|e| config_error(&self.file("join.json"), e))?;
        let member = self.member()?;
        let genesis = self.genesis_to_use()?;
        Ok(Some(Waiting { join, member, key: self.read_key("node.key")?, genesis }))
    }

    /// This node's public part.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn member(&self) -> Result<Member, NodeError> {
        let file = self.file("member.json");
        serde_json::from_str(&self.read("member.json")?).map_err(|e| config_error(&file, e))
    }

    /// This node's key.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn node_key(&self) -> Result<SigningKey, NodeError> {
        self.read_key("node.key")
    }

    /// Keeps the id under which a newcomer was admitted.
    ///
    /// # Errors
    /// If the file cannot be written, or is there.
    pub fn install_admission(&self, admitted: &Admitted) -> Result<(), NodeError> {
        let text = serde_json::to_string_pretty(admitted).map_err(|e| config_error(&self.path, e))?;
        self.write_new("admitted.json", &(text + "\n"), 0o644)
    }

    /// The network's epochs after the first.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn epochs(&self, genesis: &Genesis) -> Result<Epochs, NodeError> {
        let file = self.file("epoch.json");
        if !file.exists() {
            return Ok(Epochs::default());
        }
        Epochs::parse(&self.read("epoch.json")?, genesis).map_err(|e| config_error(&file, e))
    }

    /// Puts a genesis into a home whose node is a member by another way than the genesis.
    ///
    /// # Errors
    /// If there is one, or it cannot be written.
    pub(crate) fn write_genesis(&self, genesis: &Genesis) -> Result<(), NodeError> {
        self.write_new("genesis.json", &genesis.to_text()?, 0o644)
    }

    /// Keeps the network's epochs in the place of those that were known before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn install_epochs(&self, epochs: &Epochs) -> Result<(), NodeError> {
        let file = self.file("epoch.json");
        replace_file(&file, &epochs.to_text()?, 0o644).map_err(|e| config_error(&file, e))
    }

    /// The genesis that the home has.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn genesis(&self) -> Result<Genesis, NodeError> {
        Ok(Genesis::parse(&self.read("genesis.json")?)?)
    }

    /// The genesis, where this program can take part in its network.
    fn genesis_to_use(&self) -> Result<Genesis, NodeError> {
        let genesis = self.genesis()?;
        BUILT_WITH.check_network(&genesis.params)?;
        Ok(genesis)
    }

    /// Where members were found lately, kept for the next start.
    pub fn address_book(&self) -> PathBuf {
        self.file("peers.json")
    }

    /// Where the operator's commands reach the running node.
    pub fn admin_socket(&self) -> PathBuf {
        self.file("admin.sock")
    }

    /// Puts a genesis into the home.
    ///
    /// # Errors
    /// If this program cannot take part in that network, another one is there, or this node is not a member of it.
    pub fn install_genesis(&self, genesis: &Genesis) -> Result<NodeId, NodeError> {
        BUILT_WITH.check_network(&genesis.params)?;
        let (node, _) = self.member_of(genesis, &self.read_key("node.key")?)?;
        let path = self.file("genesis.json");
        if path.exists() {
            let present = self.genesis()?;
            if present != *genesis {
                return Err(config_error(&path, "there is another genesis here already"));
            }
            return Ok(node);
        }
        self.write_new("genesis.json", &genesis.to_text()?, 0o644)?;
        Ok(node)
    }

    fn member_of(&self, genesis: &Genesis, key: &SigningKey) -> Result<(NodeId, Member), NodeError> {
        let found = genesis.member_of(&key.public()).map(|(id, member)| (id, member.clone()));
        found.ok_or_else(|| {
            let network = &genesis.network;
            config_error(
                &self.path,
                format!(
                    "the key in node.key ({}) is no first member of network {network}; to join it, make a new home with `lockstep init --join ADDRESS`",
                    key.address()
                ),
            )
        })
    }

    /// Which member this node is, as what, and whom it knew when it became one: of the newest epoch if it began it,
    /// else as it was admitted, else of the genesis.
    fn own_place(&self, genesis: &Genesis, epochs: &Epochs, key: &SigningKey) -> Result<Place, NodeError> {
        if let Some(record) = epochs.records().last() {
            let is_own = |first: &&EpochMember| first.member().key().is_ok_and(|known| known == key.public());
            if let Some(first) = record.members.iter().find(is_own) {
                return Ok((first.node, first.member(), vec![(first.node, first.member())]));
            }
        }
        let file = self.file("admitted.json");
        if file.exists() {
            let admitted: Admitted =
                serde_json::from_str(&self.read("admitted.json")?).map_err(|e| config_error(&file, e))?;
            return Ok((admitted.node, self.member()?, admitted.members));
        }
        if !epochs.is_empty() {
            let reason = format!(
                "the network is in epoch {} now, and this node belongs to an earlier one; to join it, make a new home with `lockstep init --join ADDRESS`",
                epochs.current()
            );
            return Err(config_error(&self.path, reason));
        }
        let (node, member) = self.member_of(genesis, key)?;
        Ok((node, member, Vec::new()))
    }

    /// Reads `config.toml`.
    ///
    /// # Errors
    /// A sentence that names the line or the setting.
    pub fn config(&self) -> Result<Config, NodeError> {
        Config::parse(&self.read("config.toml")?)
            .map_err(|e| NodeError::Config(format!("{}: {e}", self.path.display())))
    }

    /// Reads everything and checks that it belongs together.
    ///
    /// # Errors
    /// A sentence that names the file and what to do.
    pub fn open(&self) -> Result<Opened, NodeError> {
        if !self.path.is_dir() {
            let hint = "no such directory; make a node with `lockstep init --home DIR`";
            return Err(config_error(&self.path, hint));
        }
        if recover::is_unfinished(self) {
            let hint = "a recovery was interrupted; finish it with `lockstep recover --unsafe`";
            return Err(config_error(&self.path, hint));
        }
        let config = self.config()?;
        let (node_key, task_key) = (self.read_key("node.key")?, self.read_key("task.key")?);
        if !self.file("genesis.json").exists() {
            let hint = "there is no genesis yet; exchange member.json with the other operators, then run `lockstep init --home DIR --network NAME --member FILE …`";
            return Err(config_error(&self.file("genesis.json"), hint));
        }
        let genesis = self.genesis_to_use()?;
        let epochs = self.epochs(&genesis)?;
        let (node, member, found) = self.own_place(&genesis, &epochs, &node_key)?;
        let store = StoreHome::open(&self.file("store"))?;
        if store.incarnation() != member.incarnation {
            let reason = "the store is not the one that this member joined with; a member that lost its store must join under a new id";
            return Err(config_error(&self.file("store"), reason));
        }
        store.bind(&genesis.id()?)?;
        Ok(Opened { config, node_key, task_key, genesis, epochs, node, found, store })
    }
}

fn hex_of(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn hex_line(key: &SigningKey) -> String {
    hex_of(&key.secret_bytes()) + "\n"
}

#[cfg(test)]
mod tests {
    use lockstep_types::NetworkParams;

    use super::*;
    use crate::config::{HttpConfig, P2pConfig, PoolConfig, RaftConfig};

    fn config() -> Config {
        Config {
            http: HttpConfig::at("127.0.0.1:9000".parse().unwrap()),
            p2p: P2pConfig::at("/ip4/127.0.0.1/tcp/9100".into()),
            pool: PoolConfig::default(),
            limits: Default::default(),
            tls: None,
            raft: RaftConfig::default(),
            upgrade: Default::default(),
            chain: None,
            coordinator: None,
            devices: Default::default(),
            w3bstream: None,
            outputs: Vec::new(),
            gateways: Vec::new(),
        }
    }

    fn options(name: &str) -> MemberOptions {
        let (p2p, http) = ("/ip4/127.0.0.1/tcp/1".into(), "http://127.0.0.1:1".into());
        MemberOptions { name: name.into(), p2p, http, node_key: None }
    }

    #[test]
    fn a_home_is_made_once_and_opens_with_its_genesis() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("a"));
        let member = home.create(&config(), options("a"), None).unwrap();
        assert!(home.create(&config(), options("a"), None).is_err());
        assert!(home.open().unwrap_err().to_string().contains("no genesis yet"));
        let genesis = Genesis::new("net", vec![member], NetworkParams::default()).unwrap();
        assert_eq!(home.install_genesis(&genesis).unwrap(), NodeId(1));
        assert_eq!(home.open().unwrap().node, NodeId(1));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(home.file("node.key")).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_strangers_key_another_store_and_another_network_are_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Home::at(dir.path().join("a")), Home::at(dir.path().join("b")));
        let member = a.create(&config(), options("a"), None).unwrap();
        b.create(&config(), options("b"), None).unwrap();
        let genesis = Genesis::new("net", vec![member.clone()], NetworkParams::default()).unwrap();
        assert!(b.install_genesis(&genesis).unwrap_err().to_string().contains("is no first member"));
        a.install_genesis(&genesis).unwrap();
        a.open().unwrap();

        let other = Genesis::new("other", vec![member], NetworkParams::default()).unwrap();
        assert!(a.install_genesis(&other).unwrap_err().to_string().contains("another genesis"));
        fs::write(a.file("genesis.json"), other.to_text().unwrap()).unwrap();
        assert!(a.open().unwrap_err().to_string().contains("belongs to network"));

        fs::write(a.file("genesis.json"), genesis.to_text().unwrap()).unwrap();
        fs::remove_dir_all(a.file("store")).unwrap();
        assert!(a.open().unwrap_err().to_string().contains("must join under a new id"));
        fs::rename(b.file("store"), a.file("store")).unwrap();
        assert!(a.open().unwrap_err().to_string().contains("must join under a new id"));
    }
}
