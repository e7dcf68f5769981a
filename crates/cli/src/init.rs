//! `lockstep init`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use lockstep_node::config::{
    HttpConfig, Layout, OutputConfig, OutputKind, P2pConfig, PoolConfig, RaftConfig, Scope, UpgradeConfig,
};
use lockstep_node::home::{JoinFile, MemberOptions};
use lockstep_node::{Config, Home, NodeError, ask_to_join};
use lockstep_types::{DevicePolicy, Genesis, Member, NetworkParams, ProjectId, ProjectSettings, SigningKey};

use crate::args::{Init, NodeArgs};

pub async fn run(options: &Init) -> anyhow::Result<()> {
    let home = Home::at(&options.home);
    if let Some(file) = &options.genesis {
        return install(&home, &Genesis::parse(&read(file)?).map_err(NodeError::from)?);
    }
    if let Some(network) = &options.network {
        let members = options.member.iter().map(|file| member(file)).collect::<anyhow::Result<Vec<_>>>()?;
        return install(&home, &form(options, network, members)?);
    }
    if let Some(address) = &options.join {
        return join(&home, options, address).await;
    }
    let member = make(&home, options)?;
    if options.single {
        return install(&home, &form(options, &member.name.clone(), vec![member])?);
    }
    println!("made a node in {}", home.path().display());
    println!(
        "give {} to the other operators, and take theirs; then run, each of you:",
        home.file("member.json").display()
    );
    println!("  lockstep init --home {} --network NAME --member FILE --member FILE …", home.path().display());
    Ok(())
}

/// Makes the node, unless it was made by an earlier try, and asks to join.
async fn join(home: &Home, options: &Init, address: &str) -> anyhow::Result<()> {
    if home.file("genesis.json").exists() {
        println!("this node has asked already; it asks on by itself: lockstep start --home {}", home.path().display());
        return Ok(());
    }
    let member = if home.file("member.json").exists() { home.member()? } else { make(home, options)? };
    let answer = ask_to_join(&home.node_key()?, address, &member).await.with_context(|| {
        format!("no network at {address}; the node in {} is made, run this again", home.path().display())
    })?;
    home.install_join(&answer.genesis, &JoinFile { bootstrap: vec![address.to_owned()] })?;
    println!("network  {}", answer.genesis.network);
    println!("id       {}   (compare it with what its operators say)", answer.genesis.id()?);
    println!("node     {} {}", member.name, member.key()?.address());
    println!("asked to join. A majority of the network's operators must now run `lockstep members list` and");
    println!("`lockstep members approve ID`, each for a node of theirs; tell them this node's address.");
    println!("start it, it waits to be admitted: lockstep start --home {}", home.path().display());
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn member(file: &Path) -> anyhow::Result<Member> {
    serde_json::from_str(&read(file)?).with_context(|| format!("{} is not a member.json", file.display()))
}

/// The port of an address on all interfaces; the address itself where it is not a plain TCP one.
fn listen_for(address: &str) -> String {
    match address.rsplit_once("/tcp/") {
        Some((_, port)) if port.parse::<u16>().is_ok() => format!("/ip4/0.0.0.0/tcp/{port}"),
        _ => address.to_owned(),
    }
}

fn make(home: &Home, options: &Init) -> anyhow::Result<Member> {
    let (config, member, task_key) = node(&options.node)?;
    Ok(home.create(&config, member, task_key.as_ref())?)
}

/// What a new node is made of.
pub fn node(options: &NodeArgs) -> anyhow::Result<(Config, MemberOptions, Option<SigningKey>)> {
    let listen = options.p2p_listen.clone().unwrap_or_else(|| listen_for(&options.p2p_address));
    let config = Config {
        http: HttpConfig::at(options.http_listen),
        p2p: P2pConfig::at(listen),
        pool: PoolConfig::default(),
        limits: Default::default(),
        tls: None,
        raft: RaftConfig::default(),
        upgrade: UpgradeConfig::default(),
        chain: None,
        coordinator: None,
        devices: Default::default(),
        gateways: Vec::new(),
        w3bstream: None,
        outputs: vec![OutputConfig {
            name: "tasks".parse()?,
            scope: Scope::Node,
            projects: None,
            kind: OutputKind::Sqlite { path: "tasks.sqlite".into(), layout: Layout::default() },
        }],
    };
    let task_key = options.task_key_file.as_deref().map(key).transpose()?;
    let member = MemberOptions {
        name: options.name.clone(),
        p2p: options.p2p_address.clone(),
        http: options.http_url.trim_end_matches('/').to_owned(),
        node_key: None,
    };
    Ok((config, member, task_key))
}

fn key(file: &Path) -> anyhow::Result<SigningKey> {
    SigningKey::from_hex(&read(file)?).with_context(|| format!("{}: not 64 hex digits", file.display()))
}

fn form(options: &Init, network: &str, members: Vec<Member>) -> Result<Genesis, NodeError> {
    let settings = ProjectSettings { devices: Some(options.devices.into()), ..ProjectSettings::default() };
    let own = if options.single { Some(Home::at(&options.home).node_key()?.address()) } else { None };
    let projects = options.project.iter().map(|project| (project.id, settings.clone())).collect();
    let owners = options.project.iter().filter_map(|project| Some((project.id, project.owner.or(own)?))).collect();
    // Nobody owns an unknown project, so nobody could register a device for it.
    let default_project = if options.allow_unknown_projects { ProjectSettings::open() } else { settings };
    let params = NetworkParams {
        allow_unsigned: options.allow_unsigned,
        allow_unknown_projects: options.allow_unknown_projects,
        public_payloads: options.public_payloads,
        default_project,
        projects,
        owners,
        ..first_params(lockstep_rules::HAS_ENGINE)
    };
    Ok(Genesis::new(network, members, params)?)
}

/// What the parameters of a new network begin with. A program without rules makes networks without them, since it could take
/// part in no other.
pub fn first_params(has_rules: bool) -> NetworkParams {
    NetworkParams { rules_fuel_per_second: (!has_rules).then_some(0), ..NetworkParams::default() }
}

fn install(home: &Home, genesis: &Genesis) -> anyhow::Result<()> {
    let node = home.install_genesis(genesis)?;
    println!("network  {}", genesis.network);
    println!("id       {}   (must be the same for all operators)", genesis.id()?);
    println!("members  {}; this node is number {node}", genesis.members.len());
    if genesis.params.projects.is_empty() && !genesis.params.allow_unknown_projects {
        println!("note: no project is registered, so every message is refused; form the genesis with --project ID");
    }
    let nobody = |(id, settings): &(&ProjectId, &ProjectSettings)| {
        settings.policy() != DevicePolicy::Any
            && !genesis.params.owners.contains_key(id)
            && genesis.params.chain.is_none()
    };
    for (id, _) in genesis.params.projects.iter().filter(nobody) {
        println!(
            "note: project {id} has no owner who could add devices; give --project {id}=OWNER, or name one later with \
             `lockstep projects propose`"
        );
    }
    println!("start it with: lockstep start --home {}", home.path().display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_rules_makes_networks_without_them() {
        assert_eq!(first_params(true), NetworkParams::default());
        assert!(!first_params(false).allows_rules());
    }
}
