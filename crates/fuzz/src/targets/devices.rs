//! Bodies of devices and gateways with several messages. Those with one have targets in `crates/identity/fuzz`.

use lockstep_identity::{IDEMPOTENCY_KEY_BYTES_MAX, IdempotencyKey, parse_bulk, parse_bundle, sign_body};
use lockstep_types::{OrderKind, SignedOrder};
use prost::Message as _;

use crate::target::Target;
use crate::world::{OPEN, key, order};

pub(super) const TARGETS: &[Target] = &[
    Target::new("bulk", bulk_seeds, read_bulk),
    Target::new("idempotency_key", || vec![b"reading-7".to_vec()], read_key),
    Target::new("order", order_seeds, read_order),
];

const MESSAGES_MAX: usize = 8;

fn bulk_seeds() -> Vec<Vec<u8>> {
    let bodies: Vec<_> = (0..3).map(|n| sign_body(&key(100), OPEN, "0.1", &format!("reading {n}"))).collect();
    vec![format!("[{}]", bodies.join(",")).into_bytes(), b"[]".to_vec()]
}

fn read_bulk(bytes: &[u8]) -> bool {
    if let Ok(bundle) = parse_bundle(bytes, MESSAGES_MAX) {
        assert!(bundle.len() <= MESSAGES_MAX);
    }
    let Ok(requests) = parse_bulk(bytes, MESSAGES_MAX) else { return false };
    assert!(requests.len() <= MESSAGES_MAX);
    for request in requests.into_iter().flatten() {
        let _ = request.check_limits(1_024);
        if let Ok(verified) = request.authenticate() {
            assert!(verified.into_message().verify(|_| false).is_ok());
        }
    }
    true
}

fn read_key(bytes: &[u8]) -> bool {
    IdempotencyKey::parse(bytes).is_ok_and(|key| {
        assert!((1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.into_bytes().len()));
        true
    })
}

fn order_seeds() -> Vec<Vec<u8>> {
    vec![order(1, OrderKind::Owner(key(51).address())).to_proto().encode_to_vec()]
}

fn read_order(bytes: &[u8]) -> bool {
    SignedOrder::decode(bytes.to_vec().into()).is_ok_and(|order| {
        let again = SignedOrder::decode(order.to_proto().encode_to_vec().into());
        assert_eq!(again.as_ref(), Ok(&order));
        true
    })
}
