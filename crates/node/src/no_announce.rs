//! In the place of announcing, in a program without the feature `gossip`: a configuration that asks for it was refused
//! before.

use lockstep_api::views::W3bstreamView;

use crate::error::NodeError;
use crate::node::Parts;
use crate::publish::RunningOutput;
use crate::supervisor::Supervisor;

/// A view on running announcements, of which there are none.
#[derive(Debug, Clone)]
pub(crate) enum Announcements {}

impl Announcements {
    pub fn view(&self) -> W3bstreamView {
        match *self {}
    }
}

/// Announces nothing.
pub(crate) async fn start(
    _supervisor: &mut Supervisor,
    _parts: &Parts,
    _outputs: &[RunningOutput],
) -> Result<Option<Announcements>, NodeError> {
    Ok(None)
}
