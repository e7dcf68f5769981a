//! `lockstep members`.

use anyhow::{Context as _, bail};
use lockstep_api::views::{MemberView, MembersView};
use lockstep_node::Home;
use lockstep_node::admin::{AdminAnswer, AdminRequest, administer};
use lockstep_types::members::{member_from_proto, member_to_proto};
use lockstep_types::{Change, Hash32, Member, MemberRole, NodeId, Proposal, TimeMs, proto};
use prost::Message as _;

use crate::args::{MembersCommand, OfMember};

/// Proposals expire at a full day, at least one day from now, so that operators who propose the same change on the same
/// day approve one and the same proposal.
const DAY_MS: u64 = 24 * 3600 * 1000;

pub async fn run(command: MembersCommand) -> anyhow::Result<()> {
    let change = |options: OfMember, make: fn(NodeId) -> Change| (Home::at(options.home), make(NodeId(options.node)));
    let (home, change) = match command {
        MembersCommand::List { home, json } => return list(&Home::at(home), json).await,
        MembersCommand::Approve { home, id } => return approve(&Home::at(home), &id).await,
        MembersCommand::Propose { home, admit } => {
            let text = std::fs::read_to_string(&admit).with_context(|| admit.display().to_string())?;
            let member: Member =
                serde_json::from_str(&text).with_context(|| format!("{} is not a member.json", admit.display()))?;
            (Home::at(home), Change::Admit(member_from_proto(member_to_proto(&member))?))
        }
        MembersCommand::Promote(options) => change(options, Change::Promote),
        MembersCommand::Demote(options) => change(options, Change::Demote),
        MembersCommand::Remove(options) => change(options, Change::Remove),
        MembersCommand::Leave { home } => {
            let home = Home::at(home);
            let (view, own) = (view(&home).await?, home.node_key()?.address());
            (home, Change::Remove(own_id(&view, own)?))
        }
    };
    let members = view(&home).await?;
    propose(&home, &members, change).await
}

/// Approves a change, as an operator.
pub async fn approve_change(home: &Home, change: Change) -> anyhow::Result<()> {
    let members = view(home).await?;
    propose(home, &members, change).await
}

async fn view(home: &Home) -> anyhow::Result<MembersView> {
    match administer(home, &AdminRequest::Members).await? {
        AdminAnswer::Members(view) => Ok(*view),
        _ => bail!("the node gave another answer than asked for: it has another version"),
    }
}

fn own_id(view: &MembersView, own: lockstep_types::Address) -> anyhow::Result<NodeId> {
    let present = |member: &&MemberView| member.address == own && member.role != MemberRole::Removed;
    Ok(view.members.iter().find(present).context("this node is no member of the network")?.id)
}

async fn approve(home: &Home, id: &str) -> anyhow::Result<()> {
    let view = view(home).await?;
    let matches = |known: &str| known.starts_with(id) || known.trim_start_matches("0x").starts_with(id);
    let proposals: Vec<_> = view.proposals.iter().filter(|proposal| matches(&proposal.id)).collect();
    let requests: Vec<_> = view.requests.iter().filter(|request| matches(&request.id)).collect();
    match (&proposals[..], &requests[..]) {
        ([proposal], []) => {
            let record = proto::Proposal::decode(&hex::decode(&proposal.record)?[..])?;
            sign(home, &view, Proposal::from_proto(record)?).await
        }
        ([], [request]) => {
            let record = proto::MemberRecord::decode(&hex::decode(&request.record)?[..])?;
            propose(home, &view, Change::Admit(member_from_proto(record)?)).await
        }
        ([], []) => {
            bail!("there is no proposal or request {id}: see `lockstep members list --home {}`", home.path().display())
        }
        _ => bail!("{id} is the beginning of several ids: give more of it"),
    }
}

/// Approves a change: the proposal of it that waits already, or a new one.
async fn propose(home: &Home, view: &MembersView, change: Change) -> anyhow::Result<()> {
    for waiting in &view.proposals {
        let proposal = Proposal::from_proto(proto::Proposal::decode(&hex::decode(&waiting.record)?[..])?)?;
        if proposal.change == change {
            return sign(home, view, proposal).await;
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as u64;
    let members: Hash32 = hex::decode(view.members_hash.trim_start_matches("0x"))?
        .try_into()
        .map_err(|_| anyhow::anyhow!("the node gave no members hash"))?;
    let expires_ms = TimeMs((now / DAY_MS + 2) * DAY_MS);
    sign(home, view, Proposal { epoch: view.epoch, number: view.changes + 1, members, expires_ms, change }).await
}

async fn sign(home: &Home, view: &MembersView, proposal: Proposal) -> anyhow::Result<()> {
    let key = home.node_key()?;
    let (what, digest) = (proposal.change.to_string(), proposal.digest(&view.network_id));
    let approval = proposal.approve(&view.network_id, own_id(view, key.address())?, &key);
    administer(home, &AdminRequest::Approve(hex::encode(approval.to_proto().encode_to_vec()))).await?;
    println!("approved: {what} (0x{})", hex::encode(digest));
    let now = self::view(home).await?;
    let waiting = now.proposals.iter().find(|proposal| proposal.id.ends_with(&hex::encode(digest)));
    match waiting {
        Some(waiting) => println!(
            "{} of {} approvals; the others run `lockstep members approve`",
            waiting.approvals.len(),
            waiting.needed
        ),
        None => println!("a majority has approved: the change is being made"),
    }
    Ok(())
}

async fn list(home: &Home, json: bool) -> anyhow::Result<()> {
    let view = view(home).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&view)?);
        return Ok(());
    }
    for member in &view.members {
        let connected = if member.connected || member.role == MemberRole::Removed { "" } else { " NOT connected" };
        let role = format!("{:?}", member.role).to_lowercase();
        println!("member   {} {} {role} {} {}{connected}", member.id, member.name, member.address, member.http);
    }
    if let Some(pending) = &view.pending {
        println!("change   {pending}: under way");
    }
    for proposal in &view.proposals {
        let by: Vec<String> = proposal.approvals.iter().map(ToString::to_string).collect();
        println!(
            "proposal {} {}: approved by {}; {} of {}",
            proposal.id,
            proposal.change,
            by.join(", "),
            by.len(),
            proposal.needed
        );
    }
    for request in &view.requests {
        println!(
            "request  {} {} asks to join: {} {} ({} s ago)",
            request.id, request.name, request.address, request.p2p, request.asked_seconds_ago
        );
    }
    Ok(())
}
