//! Nodes that come and go, as operators let them.

use std::time::Duration;

use lockstep_types::NodeId;

use super::homes::{complete_home, init_arguments, new_node};
use super::{Cluster, Part, client_of};
use crate::operator::{MemberList, Operator};
use crate::wait::eventually;

/// Longest wait for one change of membership, where nothing is wrong with the network.
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);

/// A change that operators approve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ballot {
    /// A newcomer is admitted as an observer.
    Admit,
    /// An observer becomes a voter.
    Promote,
    /// A voter becomes an observer.
    Demote,
    /// A member leaves for good.
    Remove,
}

impl Cluster {
    /// The operator of the node at a place.
    pub fn operator(&self, index: usize) -> Operator {
        let process = &self.nodes[index].process;
        Operator::of(process.binary(), process.home())
    }

    /// Operators of the voters that run and are not paused, whose commands can be answered.
    pub fn operators(&mut self) -> Vec<Operator> {
        let voters = self.voters();
        self.awake().into_iter().filter(|index| voters.contains(index)).map(|index| self.operator(index)).collect()
    }

    /// Makes a node that asks to join at the node at place `at`, and starts it; it waits to be admitted. Returns its
    /// place.
    ///
    /// # Errors
    /// What the command printed. The place is taken then too, and stays outside.
    pub async fn ask_to_join(&mut self, at: usize) -> Result<usize, String> {
        let (index, binary) = (self.nodes.len(), self.nodes[at].process.binary().to_owned());
        let mut node = new_node(&binary, self.directory.path(), index, &self.options, self.fabric.as_ref());
        node.part = Part::Outside;
        let (how, address) = (init_arguments(&node, self.directory.path(), index), self.nodes[at].p2p_address());
        let operator = Operator::of(&binary, node.process.home());
        self.nodes.push(node);
        self.client = client_of(&self.nodes);
        operator.ask_to_join(&address, how).await?;
        complete_home(&self.nodes[index], &self.options);
        self.start_node(index);
        Ok(index)
    }

    /// Lets operators approve a change of the node at a place, one after the other, until no more approvals are
    /// needed. The change is under way then, or made.
    ///
    /// # Errors
    /// Why one of them could not, in the program's words: nothing more was tried after that.
    pub async fn vote(&mut self, ballot: Ballot, index: usize) -> Result<(), String> {
        let (name, operators) = (self.name(index), self.operators());
        let voters = self.voters().len();
        let wanted = voters / 2 + 1;
        if operators.len() < wanted {
            return Err(format!("only {} of {voters} operators can approve", operators.len()));
        }
        approve(&operators[..wanted], ballot, &name).await
    }

    /// A change of the node at a place, approved and made.
    ///
    /// # Panics
    /// When it is not made in time.
    pub async fn change(&mut self, ballot: Ballot, index: usize) {
        let what = format!("{ballot:?} of the node at place {index}");
        let name = self.name(index);
        eventually(&what, CHANGE_DEADLINE, async || {
            // Refusals pass: leaders change, and newcomers lag behind at first.
            let voted = self.vote(ballot, index).await;
            let list = self.list().await?;
            let is_done = is_made(&list, ballot, &name) && list.pending.is_none();
            if is_done { Ok(()) } else { Err(format!("{voted:?}; {list:?}")) }
        })
        .await;
        self.refresh().await.expect("a member that answers");
    }

    /// A node more, as a voter: it asks, is admitted, catches up and is promoted. Returns its place.
    ///
    /// # Panics
    /// When something of it fails, or does not come about in time.
    pub async fn add_node(&mut self) -> usize {
        let at = self.awake()[0];
        let index = self.ask_to_join(at).await.unwrap_or_else(|error| panic!("{error}"));
        self.change(Ballot::Admit, index).await;
        self.wait_ready(index, CHANGE_DEADLINE).await;
        self.change(Ballot::Promote, index).await;
        index
    }

    /// A node less: it is removed, and its process killed.
    ///
    /// # Panics
    /// When that does not come about in time.
    pub async fn remove_node(&mut self, index: usize) {
        self.change(Ballot::Remove, index).await;
        self.kill(index);
    }

    /// The newest of what operators see of membership.
    ///
    /// # Errors
    /// Why none sees it.
    pub async fn list(&mut self) -> Result<MemberList, String> {
        let mut newest: Result<MemberList, String> = Err("no node runs".to_owned());
        for operator in self.operators() {
            match (operator.list().await, &newest) {
                (Ok(list), Ok(known)) if list.changes <= known.changes => {}
                (Err(_), Ok(_)) => {}
                (list, _) => newest = list,
            }
        }
        newest
    }

    /// Takes ids and parts of all nodes from what the network says. True where something is new.
    ///
    /// # Errors
    /// When no operator gets an answer.
    pub async fn refresh(&mut self) -> Result<bool, String> {
        let list = self.list().await?;
        let mut changed = false;
        for index in 0..self.nodes.len() {
            let (id, part) = match list.present(&self.name(index)) {
                Some(member) if member.role == "voter" => (member.id, Part::Voter),
                Some(member) => (member.id, Part::Observer),
                None => (self.nodes[index].id, Part::Outside),
            };
            let node = &mut self.nodes[index];
            changed |= (node.id, node.part) != (id, part);
            (node.id, node.part) = (id, part);
        }
        Ok(changed)
    }

    /// The name that the node at a place gave itself.
    pub fn name(&self, index: usize) -> String {
        format!("node-{}", index + 1)
    }
}

fn is_made(list: &MemberList, ballot: Ballot, name: &str) -> bool {
    let role = list.present(name).map(|member| member.role.as_str());
    match ballot {
        Ballot::Admit => role.is_some(),
        Ballot::Promote => role == Some("voter"),
        Ballot::Demote => role == Some("observer"),
        Ballot::Remove => role.is_none(),
    }
}

/// Lets each of these operators approve a change, unless it is made or under way already.
///
/// # Errors
/// Why one of them could not; nothing more was tried after that.
pub async fn approve(operators: &[Operator], ballot: Ballot, name: &str) -> Result<(), String> {
    for operator in operators {
        let list = operator.list().await?;
        if is_made(&list, ballot, name) || list.pending.is_some() {
            return Ok(());
        }
        let id = |list: &MemberList| -> Result<NodeId, String> {
            Ok(list.present(name).ok_or_else(|| format!("{name} is no member"))?.id)
        };
        match ballot {
            Ballot::Admit => {
                let request = list.requests.iter().find(|request| request.name == name);
                let request = request.ok_or_else(|| format!("no request of {name}: {list:?}"))?;
                operator.approve(&request.id).await
            }
            Ballot::Promote => operator.promote(id(&list)?).await,
            Ballot::Demote => operator.demote(id(&list)?).await,
            Ballot::Remove => operator.remove(id(&list)?).await,
        }?;
    }
    Ok(())
}
