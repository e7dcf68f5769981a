//! What the fuzz targets call: the readers of bytes of this crate. Not for anybody else.

use futures::FutureExt as _;
use lockstep_types::{Epoch, Incarnation, NetworkId, NodeId, proto};
use prost::Message as _;

use crate::frame::{self, FrameError};
use crate::gateway::GatewayRefusal;
use crate::hello::Identity;
use crate::options::{Member, split_peer};

thread_local! {
    /// Frames are read within a time; its clock stands still.
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing");
}

/// A stream of frames up to `max` bytes each, until one is no frame. Tells how many there were.
pub fn frames(bytes: &[u8], max: u64) -> usize {
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        frames_at_once(bytes, max)
    })
}

fn frames_at_once(mut bytes: &[u8], max: u64) -> usize {
    let mut count = 0;
    loop {
        let before = bytes;
        // All bytes are there, so nothing waits.
        let read = frame::read(&mut bytes, max).now_or_never();
        match read.unwrap_or(Err(FrameError::Late)) {
            Ok(body) => {
                assert!(body.len() as u64 <= max);
                let mut again = Vec::new();
                let written = frame::write(&mut again, std::slice::from_ref(&body)).now_or_never();
                assert!(written.is_some_and(|written| written.is_ok()));
                assert_eq!(again, before[..again.len()], "a frame has one form");
                count += 1;
            }
            Err(FrameError::Refused(reason)) => {
                let _ = GatewayRefusal::read(&reason);
                return count;
            }
            Err(_) => return count,
        }
    }
}

/// A `Hello`; true where it is that of node 2, whose log may have lost nothing.
pub fn hello(bytes: &[u8]) -> bool {
    let Ok(hello) = proto::Hello::decode(bytes) else { return false };
    let (network, incarnation) = (NetworkId([1; 32]), Incarnation([2; 16]));
    let identity = Identity { network, epoch: Epoch(0), node: NodeId(1), incarnation: Incarnation([1; 16]) };
    let peer = libp2p::PeerId::from_bytes(&[0, 1, 0]);
    let Ok(peer) = peer else { return false };
    let member = Member { node: NodeId(2), name: "two".into(), peer, address: None, incarnation };
    let is_taken = identity.check(&hello, &member, 7).is_ok();
    if is_taken {
        assert_eq!((&hello.network[..], hello.node, hello.epoch), (&network.0[..], 2, 0));
        assert!(hello.incarnation == incarnation.0[..] && hello.last_index >= 7);
    }
    is_taken
}

/// An address of a peer, as a member or a newcomer says it.
pub fn address(text: &str) -> bool {
    let Ok(address) = text.parse::<libp2p::Multiaddr>() else { return false };
    let (rest, peer) = split_peer(address.clone());
    let joined = peer.into_iter().fold(rest, |rest, peer| rest.with(libp2p::multiaddr::Protocol::P2p(peer)));
    assert_eq!(joined, address);
    true
}
