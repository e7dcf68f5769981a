//! A running node's history, as it hands it over.

use bytes::Bytes;
use lockstep_api::views::BoundariesView;
use lockstep_client::{Client, ClientError};
use lockstep_node::check::{ChainCheck, ChainReport, CheckError, Page, Part, Progress, way_from_genesis};
use lockstep_types::proof::{Boundary, PROOF_BOUNDARIES_MAX};
use lockstep_types::{Epochs, ExportPage, Genesis, Height};

use crate::verify::{NotGood, unable};

fn bad(reason: impl ToString) -> NotGood {
    CheckError::bad(Part::Remote, reason).into()
}

fn unanswered(error: ClientError) -> NotGood {
    match &error {
        ClientError::Refused { status: 410, .. } => {
            unable(format!("{error}: the node has forgotten batches while they were read; try again"))
        }
        ClientError::Refused { status: 404, .. } => unable(format!("{error}: does it run an older program?")),
        _ => unable(error),
    }
}

struct Remote<'a> {
    client: Client,
    genesis: &'a Genesis,
    rules_known: u32,
    epochs: &'a Epochs,
}

/// Checks what a node has up to its newest batch at this moment.
pub async fn check(
    url: &str,
    genesis: &Genesis,
    rules_known: u32,
    epochs: &Epochs,
    progress: &mut dyn Progress,
) -> Result<ChainReport, NotGood> {
    let client = Client::new(vec![url.to_owned()]).map_err(unable)?;
    let remote = Remote { client, genesis, rules_known, epochs };
    let first = remote.page(Height(0)).await?;
    let (start, head, promised) = (first.oldest_height, first.head, first.final_height);
    let mut check = remote.begin(&first).await?;
    progress.begin("batches", head.0.saturating_add(1).saturating_sub(start.0));
    let (mut next, mut page) = (start, first);
    while next <= head {
        let Some(last) = page.batches.last().map(|batch| batch.header.height).filter(|last| *last >= next) else {
            return Err(bad(format!("batch {next} is missing, although the node says that it has batch {head}")));
        };
        // Blocks this thread, on which nothing else runs.
        let page_of_batches = Page { batches: page.batches, certificates: page.certificates };
        tokio::task::block_in_place(|| check.take(&page_of_batches, progress))?;
        next = Height(last.0.saturating_add(1));
        if next > head {
            break;
        }
        page = remote.page(next).await?;
    }
    let report = check.report();
    if report.final_height < promised {
        let has = report.final_height;
        return Err(bad(format!("it says that batches up to {promised} are final, but has certificates up to {has}")));
    }
    if !report.is_anchored() {
        let reason = format!("no certificate vouches for batch {start}, with which the node's history begins");
        return Err(unable(reason));
    }
    Ok(report)
}

impl Remote<'_> {
    async fn page(&self, from: Height) -> Result<ExportPage, NotGood> {
        let bytes: Bytes =
            self.client.get_bytes_from(0, &format!("/api/export?from={from}")).await.map_err(unanswered)?;
        let page = ExportPage::decode(bytes).map_err(|e| match e {
            e @ lockstep_types::DecodeError::Newer { .. } => unable(e),
            e => bad(e),
        })?;
        let network = self.genesis.id().map_err(unable)?;
        if page.network != network {
            return Err(unable(format!("the node is of network {}, the genesis file of {network}", page.network)));
        }
        let epoch = self.epochs.current();
        if page.epoch != epoch {
            let reason =
                format!("the node is in epoch {}, and epochs up to {epoch} are given: see --epochs", page.epoch);
            return Err(unable(reason));
        }
        Ok(page)
    }

    /// From the genesis, or over the changes of the members where the beginning was forgotten.
    async fn begin(&self, first: &ExportPage) -> Result<ChainCheck, NotGood> {
        let start = first.oldest_height;
        if start.0 <= 1 {
            return Ok(ChainCheck::from_genesis(self.genesis, self.rules_known, self.epochs, Part::Remote)?);
        }
        let boundaries = self.boundaries(start).await?;
        let members = way_from_genesis(self.genesis, self.epochs, boundaries, start, Part::Remote)?;
        Ok(ChainCheck::from_horizon(
            self.genesis,
            self.rules_known,
            members,
            (start, first.oldest_sequence),
            Part::Remote,
        ))
    }

    async fn boundaries(&self, below: Height) -> Result<Vec<Boundary>, NotGood> {
        let (mut all, mut next) = (Vec::new(), Height(0));
        loop {
            let path = format!("/api/boundaries?from={next}");
            let page: BoundariesView = self.client.get_json_from(0, &path).await.map_err(unanswered)?;
            let last = page.boundaries.last().map(|boundary| boundary.header.height).filter(|last| *last >= next);
            all.extend(page.boundaries);
            match last {
                Some(last) if last < below && all.len() < PROOF_BOUNDARIES_MAX => next = Height(last.0 + 1),
                _ => return Ok(all),
            }
        }
    }
}
