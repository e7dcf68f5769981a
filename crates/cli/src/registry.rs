//! `lockstep projects` and `lockstep devices`: what a project's owner orders, and what there is.

use std::path::Path;

use anyhow::{Context as _, bail};
use lockstep_api::views::{DevicesView, ProjectView, ProjectsView, RulesFigures};
use lockstep_client::Client;
use lockstep_identity::{Did, Document};
use lockstep_node::Home;
use lockstep_rules::Rules;
use lockstep_types::registry::reader_hash;
use lockstep_types::task_v1::SignedKey;
use lockstep_types::{
    Address, Change, DeviceEntry, Digest, Height, Order, OrderKind, ProjectId, RulesOrder, SigningKey, TimeMs,
};
use prost::Message as _;
use rand::TryRng as _;
use zeroize::Zeroizing;

use crate::args::{DevicesCommand, OfProject, Owner, ProjectsCommand, ReadersCommand, Settings};
use crate::{members, rules};

/// How long an order counts: long enough for slow hands, and not for ever.
const ORDER_LIFE_MS: u64 = 3_600_000;

pub async fn projects(command: ProjectsCommand) -> anyhow::Result<()> {
    match command {
        ProjectsCommand::Show { url, project } => {
            let known: ProjectsView = get(&url, "/api/projects").await?;
            let chosen = known.projects.iter().filter(|known| project.is_none_or(|id| known.id == id));
            let chosen: Vec<&ProjectView> = chosen.collect();
            if let (Some(id), true) = (project, chosen.is_empty()) {
                bail!("project {id} is not registered in this network");
            }
            println!("{}", serde_json::to_string_pretty(&chosen)?);
            Ok(())
        }
        ProjectsCommand::Init { rules: file } => rules::init(&file),
        ProjectsCommand::Test(test) => rules::test(&test),
        ProjectsCommand::History(OfProject { url, project }) => history(&url, project).await,
        ProjectsCommand::Set { owner, settings } => set(owner, settings).await,
        ProjectsCommand::Readers(ReadersCommand::Add { owner }) => add_reader(&owner).await,
        ProjectsCommand::Readers(ReadersCommand::Remove { owner, hashes, all }) => {
            change_readers(&owner, |readers| {
                let before = readers.len();
                readers.retain(|hash| !all && !hashes.contains(hash));
                if readers.len() == before { bail!("the project has no such token") } else { Ok(()) }
            })
            .await
        }
        ProjectsCommand::Transfer { owner, to } => order(&owner, OrderKind::Owner(to)).await,
        ProjectsCommand::Propose { home, project, owner } => {
            members::approve_change(&Home::at(home), Change::Project(project, owner)).await
        }
    }
}

pub async fn devices(command: DevicesCommand) -> anyhow::Result<()> {
    match command {
        DevicesCommand::Add { owner, devices } => {
            let entries = devices.iter().map(|text| entry(text)).collect::<anyhow::Result<Vec<_>>>()?;
            order(&owner, OrderKind::AddDevices(entries)).await
        }
        DevicesCommand::Remove { owner, devices } => {
            order(&owner, OrderKind::RemoveDevices(addresses(&devices)?)).await
        }
        DevicesCommand::Revoke { owner, devices } => order(&owner, OrderKind::RevokeTokens(addresses(&devices)?)).await,
        DevicesCommand::List { of: OfProject { url, project } } => list(&url, project).await,
    }
}

/// A device by its DID or address.
fn address(text: &str) -> anyhow::Result<Address> {
    let did = text.parse::<Did>().map(|did| did.address());
    did.or_else(|_| text.parse()).map_err(|_| {
        anyhow::anyhow!("{text:?} is neither a DID (did:io:0x and 40 hex digits) nor an address (0x and 40 hex digits)")
    })
}

fn addresses(devices: &[String]) -> anyhow::Result<Vec<Address>> {
    devices.iter().map(|device| address(device)).collect()
}

/// A device by its DID or address, or by a file with its DID document.
fn entry(text: &str) -> anyhow::Result<DeviceEntry> {
    if !Path::new(text).is_file() {
        let device = address(text).with_context(|| format!("there is no file {text} with a DID document either"))?;
        return Ok(DeviceEntry { device, document: None });
    }
    let document = std::fs::read_to_string(text).with_context(|| text.to_owned())?.trim().to_owned();
    let read = Document::parse(document.as_bytes()).with_context(|| text.to_owned())?;
    Ok(DeviceEntry { device: read.did.address(), document: Some(document) })
}

async fn get<T: serde::de::DeserializeOwned>(url: &str, path: &str) -> anyhow::Result<T> {
    let client = Client::new(vec![url.to_owned()])?;
    client.get_json_from(0, path).await.with_context(|| format!("no answer of use from {url}"))
}

/// 256 random bits as text, so that their hash gives nothing away.
fn new_token() -> anyhow::Result<Zeroizing<String>> {
    let mut bits = Zeroizing::new([0_u8; 32]);
    rand::rngs::SysRng.try_fill_bytes(bits.as_mut_slice()).context("the system gives no randomness")?;
    Ok(Zeroizing::new(format!("lsr_{}", hex::encode(bits.as_slice()))))
}

async fn add_reader(owner: &Owner) -> anyhow::Result<()> {
    let token = new_token()?;
    let hash = reader_hash(&token);
    change_readers(owner, |readers| {
        readers.push(hash);
        Ok(())
    })
    .await?;
    eprintln!("readers show it as `Authorization: Bearer`; it is not shown again; it is withdrawn by its hash {hash}");
    println!("{}", *token);
    Ok(())
}

async fn change_readers(
    owner: &Owner,
    change: impl FnOnce(&mut Vec<Digest>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let known: ProjectView = get(&owner.url, &format!("/api/projects/{}", owner.project)).await?;
    let mut new = known.settings;
    change(&mut new.readers)?;
    new.check()?;
    order(owner, OrderKind::Settings(new)).await
}

async fn set(owner: Owner, settings: Settings) -> anyhow::Result<()> {
    let known: ProjectView = get(&owner.url, &format!("/api/projects/{}", owner.project)).await?;
    let mut new = known.settings.clone();
    macro_rules! take {
        ($($field:ident),*) => { $(if let Some(value) = settings.$field { new.$field = value; })* };
    }
    take!(group_messages_max, group_bytes_max, group_age_max_ms, retry_window_ms, public, strict_nonces);
    if let Some(devices) = settings.devices {
        new.devices = Some(devices.into());
    }
    if let Some(keys) = settings.signed_keys {
        let names = keys.split(',').filter(|key| !key.is_empty()).map(SignedKey::new);
        new.signed_keys = names.collect::<Result<_, _>>()?;
    }
    let from = Height(settings.from_height.unwrap_or(0));
    let rules = match &settings.rules {
        Some(file) => {
            let bundle = rules::read_bundle(file)?;
            // As the network will, but with a better place in the errors.
            Rules::compile(&bundle).with_context(|| file.display().to_string())?;
            eprintln!("rules 0x{}", hex::encode(bundle.hash()));
            Some(RulesOrder { bundle: Some(bundle.encode().into()), from })
        }
        None => settings.no_rules.then_some(RulesOrder { bundle: None, from }),
    };
    if rules.is_none() && settings.from_height.is_some() {
        bail!("--from-height says from which batch on rules hold: name them with --rules");
    }
    if new == known.settings && rules.is_none() {
        bail!("nothing would change: say what to set, for example --devices any");
    }
    new.check()?;
    if new != known.settings {
        order(&owner, OrderKind::Settings(new)).await?;
    }
    match rules {
        Some(rules) => order(&owner, OrderKind::Rules(rules)).await,
        None => Ok(()),
    }
}

async fn history(url: &str, project: ProjectId) -> anyhow::Result<()> {
    let known: ProjectView = get(url, &format!("/api/projects/{project}")).await?;
    if known.rules.is_empty() {
        println!("project {project} never had rules");
    }
    for rules in &known.rules {
        let hash = rules.hash.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
        println!("from batch {}: {hash}{}", rules.from_height, if rules.holds { " (these hold)" } else { "" });
    }
    if let Some(figures) = &known.figures {
        let RulesFigures { taken, flagged, late, tasks, .. } = figures;
        println!("taken {taken}, flagged {flagged}, late {late}; tasks {tasks}");
        for (what, count) in &figures.refused {
            println!("not taken, {what}: {count}");
        }
    }
    Ok(())
}

async fn order(owner: &Owner, kind: OrderKind) -> anyhow::Result<()> {
    let key = std::fs::read_to_string(&owner.key_file).with_context(|| owner.key_file.display().to_string())?;
    let key = SigningKey::from_hex(&key).with_context(|| format!("{}: not 64 hex digits", owner.key_file.display()))?;
    let known: ProjectsView = get(&owner.url, "/api/projects").await?;
    let project = known.projects.iter().find(|known| known.id == owner.project);
    let project = project.with_context(|| format!("project {} is not registered in this network", owner.project))?;
    match project.owner {
        Some(address) if address == key.address() => {}
        Some(address) => bail!("project {} belongs to {address}, and the key is of {}", project.id, key.address()),
        None => bail!("project {} has no owner: `lockstep projects propose` names one", project.id),
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as u64;
    let order = Order {
        epoch: known.epoch,
        project: project.id,
        number: project.orders + 1,
        expires_ms: TimeMs(now + ORDER_LIFE_MS),
        kind,
    };
    let signed = order.sign(&known.network_id, &key).to_proto().encode_to_vec();
    Client::new(vec![owner.url.clone()])?.order(signed).await?;
    eprintln!("done: order {} of project {}", project.orders + 1, project.id);
    Ok(())
}

async fn list(url: &str, project: ProjectId) -> anyhow::Result<()> {
    let mut from = Address::ZERO;
    loop {
        let page: DevicesView = get(url, &format!("/api/projects/{project}/devices?from={from}")).await?;
        for device in &page.devices {
            let word = |yes: bool, word: &'static str| if yes { word } else { "" };
            let words = [
                word(device.permitted, "permitted"),
                word(device.registered, "registered"),
                word(device.listed, "listed"),
                word(device.approved, "approved-by-chain"),
                word(device.has_document, "has-document"),
            ];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            println!("{} {}", Did(device.device), words.join(" "));
        }
        let Some(next) = page.next else { return Ok(()) };
        from = next;
    }
}
