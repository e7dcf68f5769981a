//! How bytes travel: TCP (QUIC by feature), Noise, yamux.

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, noise, tcp, yamux};

use crate::directory::SharedDirectory;
use crate::lifetime::Bounded;
use crate::limits::STRANGER_STREAMS_MAX;

/// A transport whose connections are what is made of them by `settle`, which gets the peer whose key was proved.
fn transport<M, S>(key: &Keypair, multiplexer: M, settle: S) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error>
where
    M: Fn(&PeerId) -> yamux::Config + Clone + Send + Sync + 'static,
    S: Fn(PeerId, StreamMuxerBox) -> StreamMuxerBox + Clone + Send + Sync + 'static,
{
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex_ext(move |peer, _| multiplexer(peer))
        .boxed();
    #[cfg(feature = "quic")]
    let tcp = tcp.or_transport(libp2p::quic::tokio::Transport::new(libp2p::quic::Config::new(key))).map(|either, _| {
        match either {
            futures::future::Either::Left(connection) => connection,
            futures::future::Either::Right((peer, connection)) => (peer, StreamMuxerBox::new(connection)),
        }
    });
    Ok(tcp.map(move |(peer, connection), _| (peer, settle(peer, connection))).boxed())
}

/// The transport of a node: strangers get few streams and little time, gateways few streams.
///
/// A stream's window starts at 256 KiB. For members it doubles while a transfer fills it, up to 1 GiB over all streams
/// of a connection. QUIC has one bound for everyone's streams and windows, so with it strangers may hold more.
pub(crate) fn of_node(
    key: &Keypair,
    directory: SharedDirectory,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let members = directory.clone();
    let multiplexer = move |peer: &PeerId| {
        let mut config = yamux::Config::default();
        if !members.read().is_member(peer) {
            config.set_max_num_streams(STRANGER_STREAMS_MAX);
        }
        config
    };
    let settle = move |peer, connection| StreamMuxerBox::new(Bounded::new(connection, peer, directory.clone()));
    transport(key, multiplexer, settle)
}

/// The transport of one who only asks.
pub(crate) fn of_asker(key: &Keypair) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    transport(key, |_| yamux::Config::default(), |_, connection| connection)
}
