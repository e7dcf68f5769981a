//! Addresses of members that this node was given at start, for members it has then and for those that come later.

use std::collections::HashMap;

use libp2p::{Multiaddr, PeerId};
use lockstep_types::NodeId;

use crate::limits::ADDRESSES_MAX;
use crate::options::{Member, NetworkError, Options};

/// What the configuration and the address book say.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    bootstrap: Vec<(PeerId, Multiaddr)>,
    book: HashMap<NodeId, Vec<Multiaddr>>,
}

impl Hints {
    pub fn new(options: &Options) -> Result<Self, NetworkError> {
        // The book is a memory, not a setting: what is wrong in it must not keep a node from starting.
        let read =
            |texts: &Vec<String>| texts.iter().filter_map(|text| text.parse().ok()).take(ADDRESSES_MAX).collect();
        let book = options.address_book.iter().map(|(node, texts)| (*node, read(texts))).collect();
        Ok(Self { bootstrap: options.bootstrap()?, book })
    }

    /// The addresses of one member, those of the configuration first.
    pub fn of(&self, member: &Member) -> Vec<Multiaddr> {
        let configured = self.bootstrap.iter().filter(|(peer, _)| *peer == member.peer).map(|(_, address)| address);
        let remembered = self.book.get(&member.node).into_iter().flatten();
        configured.chain(remembered).cloned().collect()
    }
}
