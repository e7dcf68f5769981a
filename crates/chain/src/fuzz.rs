//! What the fuzz targets call: the readers of an endpoint's answers. Not for anybody else.

use lockstep_types::Address;

use crate::log::{Block, Decoded, Log, LogJson, in_order, registry_event, task_state};
use crate::source::ChainSource;
use crate::uri::at_gateway;

/// An endpoint's answer to `eth_getLogs`, and what the logs mean for `source`.
pub fn logs(text: &[u8], source: &ChainSource, task_manager: &Address) -> bool {
    let Ok(logs) = serde_json::from_slice::<Vec<LogJson>>(text) else { return false };
    let Ok(logs) = logs.into_iter().map(Log::try_from).collect::<Result<Vec<_>, _>>() else { return false };
    let first = Block { number: 5, hash: [5; 32], parent_hash: [4; 32] };
    let last = Block { number: 9, hash: [9; 32], parent_hash: [8; 32] };
    for log in &logs {
        let _ = task_state(task_manager, log);
        if let Decoded::Event(event) = registry_event(source, log) {
            let _ = format!("{event:?}");
        }
    }
    let count = logs.len();
    in_order(logs, &first, &last).is_ok_and(|logs| {
        assert_eq!(logs.len(), count);
        assert!(
            logs.is_sorted_by_key(|log| (log.block, log.index)) && logs.iter().all(|log| (5..=9).contains(&log.block))
        );
        true
    })
}

/// A device's address of its document: wherever it leads, it stays below the gateway.
pub fn document_uri(uri: &str) -> bool {
    let Ok(gateway) = "https://gateway.example/some/path/".parse::<reqwest::Url>() else { return false };
    at_gateway(&gateway, uri).is_ok_and(|url| {
        assert_eq!((url.scheme(), url.host_str(), url.port()), ("https", Some("gateway.example"), None), "{url}");
        assert!(url.username().is_empty() && url.password().is_none(), "{url}");
        assert!(url.path().starts_with("/some/path/"), "{url}");
        true
    })
}
