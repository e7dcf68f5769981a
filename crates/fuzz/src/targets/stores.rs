//! What comes from stores, chains, nodes (for a client) and files.

use std::sync::LazyLock;

use bytes::Bytes;
use lockstep_chain::{CONFIRMATIONS_DEFAULT, ChainSource, SPAN_MAX_DEFAULT};
use lockstep_client::fuzz::OUTBOX;
use lockstep_types::Address;

use crate::target::Target;

pub(super) const TARGETS: &[Target] = &[
    Target::new("text_files", text_seeds, |bytes| lockstep_node::fuzz::text(super::text(bytes))).with_factor(512),
    Target::new("object_entry", object_seeds, lockstep_outputs::object::fuzz),
    Target::new(
        "nats_headers",
        || vec![lockstep_outputs::nats::fuzz_seed().into_bytes()],
        |bytes| lockstep_outputs::nats::fuzz(super::text(bytes)),
    )
    // A table of headers begins with places for many.
    .with_factor(512),
    Target::new(
        "commitment",
        || vec![[&[0][..], &[7; 32]].concat(), b"0x01ab".to_vec()],
        lockstep_outputs::altda::fuzz,
    ),
    Target::new("chain_logs", log_seeds, |bytes| {
        lockstep_chain::fuzz::logs(bytes, &SOURCE, &Address([3; 20]))
            | lockstep_chain::fuzz::document_uri(super::text(bytes))
    }),
    Target::new("client", client_seeds, read_client),
    Target::new("outbox", outbox_seeds, |bytes| lockstep_client::fuzz::outbox(bytes) > 0),
];

static SOURCE: LazyLock<ChainSource> = LazyLock::new(|| ChainSource {
    chain_id: 4689,
    registry: Address([1; 20]),
    project_device: Address([2; 20]),
    task_manager: Some(Address([3; 20])),
    start_block: 1,
    confirmations: CONFIRMATIONS_DEFAULT,
    span_max: SPAN_MAX_DEFAULT,
});

fn text_seeds() -> Vec<Vec<u8>> {
    let config = "[http]\nlisten = \"127.0.0.1:9000\"\nhold_ms = 500\n[p2p]\nlisten = [\"/ip4/127.0.0.1/tcp/9100\"]\n\
        [limits]\ntrusted_proxies = [\"10.0.0.0/8\"]\n[[output]]\nname = \"tasks\"\nscope = \"node\"\nkind = \"sqlite\"\npath = \"t\"\n";
    let texts = [config, r#"["Members"]"#, r#""Members""#, r#"{"Retry":{"output":"main"}}"#];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn object_seeds() -> Vec<Vec<u8>> {
    let (network, hash) = ("0x".to_owned() + &"01".repeat(32), "0x".to_owned() + &"02".repeat(32));
    let link = format!(r#"{{"version":1,"network":"{network}","epoch":0,"first":1,"last":9,"kind":"skipped"}}"#);
    let owner = format!(r#"{{"version":1,"network":"{network}","epoch":0,"first_task":1}}"#);
    let blob = format!(
        r#"{{"version":1,"network":"{network}","epoch":0,"first":1,"last":9,"kind":"blob","height":3,"part":0,"parts":1,"blob":"blobs/x","hash":"{hash}","bytes":9}}"#
    );
    [link, owner, blob].map(String::into_bytes).to_vec()
}

fn log_seeds() -> Vec<Vec<u8>> {
    let word = |byte: &str| format!("0x{}{}", "00".repeat(12), byte.repeat(20));
    let hex = |bytes: &[u8]| bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"));
    let log = |address: &str, signature: &str, topics: &[String], data: &str, index: u64| {
        let first = hex(&lockstep_types::keccak256(&[signature.as_bytes()]));
        let topics: Vec<String> =
            [first].into_iter().chain(topics.iter().cloned()).map(|t| format!("\"{t}\"")).collect();
        format!(
            r#"{{"address":"0x{}","topics":[{}],"data":"{data}","blockNumber":"0x6","blockHash":"0x{}","logIndex":"0x{index:x}"}}"#,
            address.repeat(20),
            topics.join(","),
            "06".repeat(32),
        )
    };
    let removed = log("01", "RemoveDevice(address,address)", &[word("aa"), word("bb")], "0x", 1);
    let uri = format!("0x{}{}{:0>64}{:0<64}", "00".repeat(32), "00".repeat(31) + "40", "4", "697066733a2f2f78");
    let new = log("01", "NewDevice(address,address,bytes32,string)", &[word("aa"), word("bb")], &uri, 2);
    let approved = log("02", "Approve(uint256,address)", &[word("07"), word("aa")], "0x", 3);
    let settled = log("03", "TaskSettled(uint256,bytes32,address)", &[word("07"), word("08"), word("09")], "0x", 4);
    let list = format!("[{removed},{new},{approved},{settled}]");
    vec![list.into_bytes(), b"ipfs://bafy/x/y".to_vec(), b"https://gateway.example/some/path/a?b=c".to_vec()]
}

fn client_seeds() -> Vec<Vec<u8>> {
    vec![
        b"event: task\nid: 12\ndata: {\"number\":12}".to_vec(),
        b"event: error\ndata: {\"status\":410,\"error\":\"gone\"}".to_vec(),
        br#"{"error":"busy","code":"busy"}"#.to_vec(),
        b"http://[::1]:9000/".to_vec(),
    ]
}

fn read_client(bytes: &[u8]) -> bool {
    let text = super::text(bytes);
    let status = 400 + u16::from(bytes.first().copied().unwrap_or_default() & 127);
    lockstep_client::fuzz::refusal(status, Bytes::copy_from_slice(bytes))
        | lockstep_client::fuzz::event(text)
        | lockstep_client::fuzz::url(text)
}

fn outbox_seeds() -> Vec<Vec<u8>> {
    vec![lockstep_client::fuzz::outbox_seed(&OUTBOX)]
}
