//! Homes of nodes, made with the program's own commands.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use lockstep_types::{Genesis, Member, NodeId, SigningKey};

use super::{ClusterNode, ClusterOptions, Part};
use crate::partition::Fabric;
use crate::ports::free_port;
use crate::process::{NodeProcess, run};

/// What a node has, which may be a file system of its own: its home, and what is noted of its disk.
pub(super) fn place_of(directory: &Path, index: usize) -> PathBuf {
    directory.join(format!("node-{}", index + 1))
}

fn home_of(directory: &Path, index: usize) -> PathBuf {
    place_of(directory, index).join("home")
}

/// `lockstep init` in a home of its own, with a shared task key.
pub(super) fn make_node(
    binary: &Path,
    directory: &Path,
    index: usize,
    options: &ClusterOptions,
    fabric: Option<&Fabric>,
) -> ClusterNode {
    let node = new_node(binary, directory, index, options, fabric);
    let home = node.process.home().display().to_string();
    let first = ["init".to_owned(), "--home".into(), home];
    run(binary, first.into_iter().chain(init_arguments(&node, directory, index)));
    complete_home(&node, options);
    node
}

/// What an operator changes in a home that `init` has made.
pub(super) fn complete_home(node: &ClusterNode, options: &ClusterOptions) {
    let home = node.process.home();
    if let Some(dsn) = &options.postgres {
        add_postgres(home, dsn);
    }
    if node.advertised_port != node.p2p_port {
        // Or the others would learn where it listens, and go past its gate.
        let advertise = format!("[p2p]\nadvertise = [\"{}\"]\n", node.p2p_address());
        change_config(home, |text| text.replacen("[p2p]\n", &advertise, 1));
    }
}

/// Changes the `config.toml` of a home.
///
/// # Panics
/// When it is not there, or nothing changes.
pub fn change_config(home: &Path, change: impl FnOnce(&str) -> String) {
    let config = home.join("config.toml");
    let text = fs::read_to_string(&config).expect("init makes config.toml");
    let changed = change(&text);
    assert!(changed != text, "nothing was changed in {}", config.display());
    fs::write(config, changed).expect("config.toml can be written");
}

/// The first of the addresses that nodes have where each has its own.
const FIRST_ADDRESS: u32 = 0x7f00_000b;

/// A node without a home yet, with an address and ports, and with its gate where nodes have one.
pub(super) fn new_node(
    binary: &Path,
    directory: &Path,
    index: usize,
    options: &ClusterOptions,
    fabric: Option<&Fabric>,
) -> ClusterNode {
    let own = || Ipv4Addr::from(FIRST_ADDRESS + u32::try_from(index).expect("not that many nodes"));
    let ip = if options.own_addresses { own() } else { Ipv4Addr::LOCALHOST };
    let (http_port, p2p_port) = (free_port(), free_port());
    fs::create_dir_all(place_of(directory, index)).expect("a directory for the node");
    let log = directory.join(format!("node-{}.log", index + 1));
    let process = NodeProcess::new(binary, &home_of(directory, index), &log);
    let advertised_port = fabric.map_or(p2p_port, |fabric| fabric.add(process.watch_id(), (ip, p2p_port).into()));
    ClusterNode { process, id: NodeId(0), ip, http_port, p2p_port, advertised_port, part: Part::Voter }
}

/// What `init` is told beside the home.
pub(super) fn init_arguments(node: &ClusterNode, directory: &Path, index: usize) -> Vec<String> {
    let pairs = [
        ("--name", format!("node-{}", index + 1)),
        ("--p2p-address", node.p2p_address()),
        ("--p2p-listen", format!("/ip4/{}/tcp/{}", node.ip, node.p2p_port)),
        ("--http-url", node.url()),
        ("--http-listen", node.address().to_string()),
    ];
    let mut arguments: Vec<String> = pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    if index > 0 {
        let key = home_of(directory, 0).join("task.key");
        arguments.extend(["--task-key-file".into(), key.display().to_string()]);
    }
    arguments
}

/// The server secret of every test network: the one of the first case of vectors/ioconnect, so that its devices' tokens
/// and messages are good there.
pub const SERVER_SECRET: &str = include_str!("../../server.secret");

/// What an operator adds by hand.
fn add_postgres(home: &Path, dsn: &str) {
    let section =
        "\n[[output]]\nname = \"w3bstream\"\nscope = \"network\"\nkind = \"postgres\"\ndsn_file = \"postgres.dsn\"\n";
    change_config(home, |text| text.to_owned() + section);
    fs::write(home.join("postgres.dsn"), dsn).expect("a file with the connection string");
}

/// Each operator forms the genesis from the members' public parts, or takes one with other parameters.
pub(super) fn form_network(binary: &Path, directory: &Path, options: &ClusterOptions) {
    let parts: Vec<PathBuf> = (0..options.nodes).map(|index| home_of(directory, index).join("member.json")).collect();
    let mut given: Vec<String> = Vec::new();
    if let Some(params) = &options.params {
        let member = |path: &PathBuf| -> Member {
            let text = fs::read_to_string(path).expect("init makes member.json");
            serde_json::from_str(&text).expect("member.json is a member")
        };
        let genesis = Genesis::new("test", parts.iter().map(member).collect(), params.clone()).expect("a genesis");
        let file = directory.join("genesis.json");
        fs::write(&file, genesis.to_text().expect("a genesis has a text")).expect("a file for the genesis");
        given.extend(["--genesis".into(), file.display().to_string()]);
    } else {
        given.extend(["--network", "test", "--allow-unsigned", "--allow-unknown-projects"].map(str::to_owned));
        given.push("--public-payloads".into());
        for part in &parts {
            given.extend(["--member".into(), part.display().to_string()]);
        }
    }
    for index in 0..options.nodes {
        fs::write(home_of(directory, index).join("server.secret"), SERVER_SECRET).expect("a file for the secret");
        let home = home_of(directory, index).display().to_string();
        run(binary, ["init".to_owned(), "--home".to_owned(), home].iter().chain(&given));
    }
}

/// The network that a home belongs to.
///
/// # Panics
/// When its file is missing or damaged.
pub fn genesis_of(home: &Path) -> Genesis {
    let text = fs::read_to_string(home.join("genesis.json")).expect("a genesis was installed");
    Genesis::parse(&text).expect("a genesis")
}

pub(super) fn id_of(home: &Path) -> NodeId {
    let text = fs::read_to_string(home.join("node.key")).expect("init makes a key");
    let key = SigningKey::from_hex(&text).expect("a private key");
    genesis_of(home).member_of(&key.public()).expect("the node is a member").0
}
