//! The stream multiplexer under the only name that W3bstream's nodes offer. On the wire it is ordinary yamux; a peer
//! that offers just `/yamux/1.0.0` connects and then stalls without an error.

use std::iter;

use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::yamux;

use crate::limits::STREAMS_PER_CONNECTION_MAX;

const NAME: &str = "/yamux/2.0.0";

/// libp2p's yamux under another name.
#[derive(Debug, Clone)]
pub(crate) struct Multiplexer(yamux::Config);

impl Default for Multiplexer {
    fn default() -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS_PER_CONNECTION_MAX);
        Self(config)
    }
}

impl UpgradeInfo for Multiplexer {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(NAME)
    }
}

impl<C> InboundConnectionUpgrade<C> for Multiplexer
where
    yamux::Config: InboundConnectionUpgrade<C, Info = &'static str>,
{
    type Output = <yamux::Config as InboundConnectionUpgrade<C>>::Output;
    type Error = <yamux::Config as InboundConnectionUpgrade<C>>::Error;
    type Future = <yamux::Config as InboundConnectionUpgrade<C>>::Future;

    fn upgrade_inbound(self, socket: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(socket, info)
    }
}

impl<C> OutboundConnectionUpgrade<C> for Multiplexer
where
    yamux::Config: OutboundConnectionUpgrade<C, Info = &'static str>,
{
    type Output = <yamux::Config as OutboundConnectionUpgrade<C>>::Output;
    type Error = <yamux::Config as OutboundConnectionUpgrade<C>>::Error;
    type Future = <yamux::Config as OutboundConnectionUpgrade<C>>::Future;

    fn upgrade_outbound(self, socket: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(socket, info)
    }
}
