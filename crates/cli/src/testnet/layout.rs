//! The directory of a test network: homes, genesis, ports, and the list of nodes for other tools.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lockstep_node::config::{
    HttpConfig, Layout as TableLayout, OutputConfig, OutputKind, P2pConfig, PoolConfig, RaftConfig, Scope,
};
use lockstep_node::home::{MemberOptions, random_key, random_server_secret};
use lockstep_node::secrets::SERVER_SECRET_FILE;
use lockstep_node::{Config, Home};
use lockstep_types::{Genesis, Member, NetworkParams, ProjectSettings};
use serde::{Deserialize, Serialize};

use crate::args::Up;
use crate::init::first_params;

const LIST_FILE: &str = "testnet.json";
const NOTE: &str = "A TEST NETWORK: anybody may write to it, and all payloads are public. Not for real devices.";
/// Distance of the peer-to-peer ports from the HTTP ports.
const P2P_OFFSET: u16 = 100;

/// A node as other tools find it in DIR/testnet.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// Its raft id.
    pub id: u64,
    /// Its process; 0 before it runs.
    pub pid: u32,
    /// Its home.
    pub home: PathBuf,
    /// URL of its HTTP interface.
    pub http: String,
    /// URL of its gRPC interface: the same port.
    pub grpc: String,
    /// Its multiaddress.
    pub p2p: String,
    /// Its libp2p peer id.
    pub peer_id: String,
}

/// A prepared directory.
pub struct Layout {
    /// The directory.
    pub home: PathBuf,
    /// Its nodes, by id.
    pub nodes: Vec<Node>,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// HTTP and peer-to-peer port of a node.
fn ports(base: u16, index: u16) -> anyhow::Result<(u16, u16)> {
    if base == 0 {
        return Ok((free_port()?, free_port()?));
    }
    let http = base.checked_add(index);
    let both = http.and_then(|http| Some((http, http.checked_add(P2P_OFFSET)?)));
    both.with_context(|| format!("there is no port {base} + {index} + {P2P_OFFSET}"))
}

fn config(http: u16, p2p: u16, dsn: bool) -> anyhow::Result<Config> {
    let mut outputs = vec![OutputConfig {
        name: "tasks".parse()?,
        scope: Scope::Network,
        projects: None,
        kind: OutputKind::Sqlite { path: "../tasks.sqlite".into(), layout: TableLayout::default() },
    }];
    if dsn {
        let (schema, layout) = ("public".into(), TableLayout::default());
        let kind = OutputKind::Postgres { dsn_file: "../postgres.dsn".into(), schema, layout, ca_file: None };
        outputs.push(OutputConfig { name: "w3bstream".parse()?, scope: Scope::Network, projects: None, kind });
    }
    Ok(Config {
        http: HttpConfig::at(SocketAddr::from((Ipv4Addr::LOCALHOST, http))),
        p2p: P2pConfig::at(format!("/ip4/127.0.0.1/tcp/{p2p}")),
        pool: PoolConfig::default(),
        limits: Default::default(),
        tls: None,
        raft: RaftConfig::default(),
        upgrade: Default::default(),
        chain: None,
        coordinator: None,
        devices: Default::default(),
        w3bstream: None,
        outputs,
        gateways: Vec::new(),
    })
}

impl Layout {
    /// Makes the directory, or continues the one that is there.
    pub fn prepare(options: &Up) -> anyhow::Result<Self> {
        fs::create_dir_all(&options.home).with_context(|| options.home.display().to_string())?;
        let home = options.home.canonicalize()?;
        let genesis = home.join("node-1").join("genesis.json");
        if let Some(dsn) = &options.postgres {
            write_private(&home.join("postgres.dsn"), dsn)?;
        }
        if genesis.exists() {
            let genesis = Genesis::parse(&fs::read_to_string(&genesis)?)?;
            anyhow::ensure!(
                genesis.members.len() == usize::from(options.nodes),
                "the network in {} has {} nodes; give --nodes {0}, or another --home",
                home.display(),
                genesis.members.len()
            );
            return Self::list(home, &genesis);
        }
        let members = Self::make_homes(&home, options)?;
        let params = NetworkParams {
            allow_unsigned: true,
            allow_unknown_projects: true,
            public_payloads: true,
            default_project: ProjectSettings::open(),
            ..first_params(lockstep_rules::HAS_ENGINE)
        };
        let mut genesis = Genesis::new("testnet", members, params)?;
        genesis.note = NOTE.into();
        for index in 1..=options.nodes {
            Home::at(home.join(format!("node-{index}"))).install_genesis(&genesis)?;
        }
        Self::list(home, &genesis)
    }

    fn make_homes(home: &Path, options: &Up) -> anyhow::Result<Vec<Member>> {
        // So that a device's token is good at every node.
        let server_secret = random_server_secret()?;
        let task_key = random_key()?;
        // Node ids follow from the order of the keys: give node-1 the key that makes it number 1.
        let mut keys = (0..options.nodes).map(|_| random_key()).collect::<Result<Vec<_>, _>>()?;
        keys.sort_by_key(|key| key.public().compressed());
        let mut members = Vec::new();
        for (index, node_key) in (0..).zip(keys) {
            let (http, p2p) = ports(options.http_base_port, index)?;
            let name = format!("node-{}", index + 1);
            let member = MemberOptions {
                name: name.clone(),
                p2p: format!("/ip4/127.0.0.1/tcp/{p2p}"),
                http: format!("http://127.0.0.1:{http}"),
                node_key: Some(node_key),
            };
            let config = config(http, p2p, options.postgres.is_some())?;
            fs::create_dir_all(home.join(&name))?;
            write_private(&home.join(&name).join(SERVER_SECRET_FILE), &server_secret)?;
            members.push(Home::at(home.join(name)).create(&config, member, Some(&task_key))?);
        }
        Ok(members)
    }

    fn list(home: PathBuf, genesis: &Genesis) -> anyhow::Result<Self> {
        let node = |(id, member): (lockstep_types::NodeId, &Member)| {
            Ok(Node {
                id: id.0,
                pid: 0,
                home: home.join(&member.name),
                http: member.http.clone(),
                grpc: member.http.clone(),
                p2p: member.p2p.clone(),
                peer_id: lockstep_node::peer_id_of(&member.key()?),
            })
        };
        let nodes = genesis.nodes().map(node).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { home, nodes })
    }

    /// Writes DIR/testnet.json with the processes as they run now.
    pub fn write_list(&self, pids: &[u32]) -> anyhow::Result<()> {
        let with_pid = |(node, pid): (&Node, &u32)| Node { pid: *pid, ..node.clone() };
        let list: Vec<Node> = self.nodes.iter().zip(pids).map(with_pid).collect();
        let (path, next) = (self.home.join(LIST_FILE), self.home.join("testnet.json.next"));
        fs::write(&next, serde_json::to_string_pretty(&list)? + "\n")?;
        fs::rename(&next, &path).with_context(|| path.display().to_string())
    }
}

/// A DSN may hold a password.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
