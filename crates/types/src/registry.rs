//! The registry of projects and devices, as far as the log carries it: what owners order, and what was read from a
//! chain. What of it counts is decided by `apply`.

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::elements::{self, Bound};
use crate::genesis::ProjectSettings;
use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, Digest, Epoch, Height, NetworkId, ProjectId, TimeMs};
use crate::message::DecodeError;
use crate::proto;
use crate::signature::{Signature, SigningKey, recover_address};
use crate::task_v1::SignedKey;

const ORDER_DOMAIN: &[u8] = b"lockstep/order/v1";
/// Most devices in one order.
pub const ORDER_DEVICES_MAX: usize = 256;
/// Longest DID document in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 10;
/// Longest address of a document in bytes.
pub const DOCUMENT_URI_BYTES_MAX: usize = 1 << 10;
/// Longest encoded bundle of rules in bytes: it must fit one log entry, and the body of a request.
pub const RULES_BYTES_MAX: usize = 384 << 10;
const READER_DOMAIN: &[u8] = b"lockstep/reader/v1";
/// Most members of a payload that a device's signature covers once more.
pub const SIGNED_KEYS_MAX: usize = 8;
/// Most reader tokens of a project at a time.
pub const READERS_MAX: usize = 8;
/// Longest name of such a member in bytes.
pub const SIGNED_KEY_BYTES_MAX: usize = 64;
/// Most events in one update from a chain.
pub const CHAIN_EVENTS_MAX: usize = 16_384;
/// Most bytes of its encoding: it must fit one log entry.
pub const CHAIN_UPDATE_BYTES_MAX: usize = 4 << 20;

/// Which devices a project takes messages of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DevicePolicy {
    /// Those that are registered, and approved for the project.
    Registered,
    /// Those that the project's owner has listed, registered or not.
    Listed,
    /// Any key that signs.
    Any,
}

/// A device as an owner registers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEntry {
    /// The device: the digits of its DID.
    pub device: Address,
    /// The text of its DID document; without one it cannot get tokens and encrypted answers.
    pub document: Option<String>,
}

/// What a project's owner orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderKind {
    /// These settings hold from now on.
    Settings(ProjectSettings),
    /// Somebody else owns the project.
    Owner(Address),
    /// These devices may submit to the project.
    AddDevices(Vec<DeviceEntry>),
    /// These may not any more.
    RemoveDevices(Vec<Address>),
    /// Tokens that these devices got until now are good no more.
    RevokeTokens(Vec<Address>),
    /// Rules for the project's messages.
    Rules(RulesOrder),
}

/// Rules of a project from a batch on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesOrder {
    /// The encoded bundle; `None`: no rules any more.
    pub bundle: Option<Bytes>,
    /// The first batch that they hold for: the next one, where that is there already.
    pub from: Height,
}

/// An order with everything that its signature is bound to. Nothing is checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The network's epoch.
    pub epoch: Epoch,
    /// The project.
    pub project: ProjectId,
    /// One more than the number of orders that were carried out for the project so far: each counts once.
    pub number: u64,
    /// From this time on (batch time) it counts no more.
    pub expires_ms: TimeMs,
    /// What is ordered.
    pub kind: OrderKind,
}

/// An order with its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedOrder {
    /// The order.
    pub order: Order,
    /// The owner's signature over [`Order::digest`].
    pub signature: Signature,
}

impl Order {
    /// What the owner signs (docs/formats.md, "Orders"): over the canonical protobuf of the order's body.
    pub fn digest(&self, network: &NetworkId) -> Hash32 {
        use prost::Message as _;
        keccak256(&[ORDER_DOMAIN, &network.0, &self.to_proto().encode_to_vec()])
    }

    /// Signs it with the owner's key.
    pub fn sign(self, network: &NetworkId, key: &SigningKey) -> SignedOrder {
        let signature = key.sign(&self.digest(network));
        SignedOrder { order: self, signature }
    }

    /// The wire form. Members are written in the order of their numbers and zeros left out, so that there is one
    /// encoding only.
    pub fn to_proto(&self) -> proto::Order {
        use proto::order::Kind;
        let kind = match &self.kind {
            OrderKind::Settings(settings) => Kind::Settings(settings_to_proto(settings)),
            OrderKind::Owner(owner) => Kind::Owner(Bytes::copy_from_slice(&owner.0)),
            OrderKind::AddDevices(entries) => {
                let entry = |entry: &DeviceEntry| proto::DeviceEntry {
                    device: Bytes::copy_from_slice(&entry.device.0),
                    document: entry.document.clone().unwrap_or_default(),
                };
                Kind::Add(proto::DeviceEntries { entries: entries.iter().map(entry).collect() })
            }
            OrderKind::RemoveDevices(devices) => Kind::Remove(addresses_to_proto(devices)),
            OrderKind::RevokeTokens(devices) => Kind::Revoke(addresses_to_proto(devices)),
            OrderKind::Rules(order) => Kind::Rules(proto::RulesOrder {
                bundle: order.bundle.clone().unwrap_or_default(),
                from_height: order.from.0,
            }),
        };
        proto::Order {
            epoch: self.epoch.0,
            project_id: self.project.0,
            number: self.number,
            expires_ms: self.expires_ms.0,
            kind: Some(kind),
        }
    }

    /// Reads the wire form, and checks its limits.
    pub fn from_proto(order: proto::Order) -> Result<Self, DecodeError> {
        use proto::order::Kind;
        let bad = |reason: &str| DecodeError::malformed("order", reason);
        if order.project_id == 0 || order.project_id > crate::message::PROJECT_ID_MAX {
            return Err(bad("project id out of range"));
        }
        let kind = match order.kind.ok_or_else(|| bad("nothing is ordered, or something newer than this program"))? {
            Kind::Settings(settings) => OrderKind::Settings(settings_from_proto(settings)?),
            Kind::Owner(owner) => OrderKind::Owner(address(&owner)?),
            Kind::Add(add) => {
                if add.entries.len() > ORDER_DEVICES_MAX {
                    return Err(bad("too many devices"));
                }
                let entry = |entry: proto::DeviceEntry| {
                    if entry.document.len() > DOCUMENT_BYTES_MAX {
                        return Err(bad("a document is too long"));
                    }
                    let document = Some(entry.document).filter(|document| !document.is_empty());
                    Ok(DeviceEntry { device: address(&entry.device)?, document })
                };
                OrderKind::AddDevices(add.entries.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
            Kind::Remove(devices) => OrderKind::RemoveDevices(addresses_from_proto(devices)?),
            Kind::Revoke(devices) => OrderKind::RevokeTokens(addresses_from_proto(devices)?),
            Kind::Rules(order) => {
                if order.bundle.len() > RULES_BYTES_MAX {
                    return Err(bad("the bundle of rules is too large"));
                }
                let bundle = Some(order.bundle).filter(|bundle| !bundle.is_empty());
                OrderKind::Rules(RulesOrder { bundle, from: Height(order.from_height) })
            }
        };
        let (epoch, project) = (Epoch(order.epoch), ProjectId(order.project_id));
        Ok(Self { epoch, project, number: order.number, expires_ms: TimeMs(order.expires_ms), kind })
    }
}

impl SignedOrder {
    /// Reads the encoding of the wire form, as an owner sends it.
    pub fn decode(order: Bytes) -> Result<Self, DecodeError> {
        // Devices that are added, removed, and whose tokens are revoked: two bytes each here, and more in memory.
        let devices: [&[u32]; 3] = [&[1, 7, 1], &[1, 8, 1], &[1, 9, 1]];
        elements::check("order", &order, &devices.map(|path| Bound { path, count_max: ORDER_DEVICES_MAX }))?;
        Self::from_proto(proto::SignedOrder::decode(order).map_err(|e| DecodeError::malformed("order", e))?)
    }

    /// Who signed.
    pub fn signer(&self, network: &NetworkId) -> Option<Address> {
        recover_address(&self.order.digest(network), &self.signature).ok()
    }

    /// The wire form.
    pub fn to_proto(&self) -> proto::SignedOrder {
        let signature = Bytes::copy_from_slice(&self.signature.0);
        proto::SignedOrder { order: Some(self.order.to_proto()), signature }
    }

    /// Reads the wire form.
    pub fn from_proto(signed: proto::SignedOrder) -> Result<Self, DecodeError> {
        let bad = |reason: &str| DecodeError::malformed("order", reason);
        Ok(Self {
            order: Order::from_proto(signed.order.ok_or_else(|| bad("there is none"))?)?,
            signature: Signature::try_from(&signed.signature[..]).map_err(|_| bad("the signature is not 65 bytes"))?,
        })
    }
}

/// What an ioID registry and a project-device contract said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainEvent {
    /// A device was registered, or its document changed.
    Device {
        /// The device.
        device: Address,
        /// Its owner on the chain.
        owner: Address,
        /// Hash of its DID document, as the registry has it.
        hash: Hash32,
        /// Where the document is; empty where that cannot be used.
        uri: String,
    },
    /// A device was removed from the registry.
    Removed(Address),
    /// A device may submit to a project.
    Approved(ProjectId, Address),
    /// It may not any more.
    Unapproved(ProjectId, Address),
}

/// Blocks of the chain that were read to their end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainUpdate {
    /// The first block.
    pub first: u64,
    /// The last block.
    pub last: u64,
    /// Hash of the block before the first.
    pub parent_hash: Hash32,
    /// Hash of the last block.
    pub last_hash: Hash32,
    /// What happened in them, in the chain's order.
    pub events: Vec<ChainEvent>,
}

const CHAIN_DOMAIN: &[u8] = b"lockstep/chain-update/v1";

impl ChainUpdate {
    /// What a voter signs that has read the same blocks at its own endpoint.
    pub fn digest(&self, network: &NetworkId, epoch: Epoch) -> Hash32 {
        use prost::Message as _;
        keccak256(&[CHAIN_DOMAIN, &network.0, &epoch.0.to_be_bytes(), &self.to_proto().encode_to_vec()])
    }

    /// The wire form.
    pub fn to_proto(&self) -> proto::ChainUpdate {
        use proto::chain_event::Kind;
        let bytes = |address: &Address| Bytes::copy_from_slice(&address.0);
        let grant =
            |project: &ProjectId, device: &Address| proto::Grant { project_id: project.0, device: bytes(device) };
        let event = |event: &ChainEvent| proto::ChainEvent {
            kind: Some(match event {
                ChainEvent::Device { device, owner, hash, uri } => Kind::Device(proto::ChainDevice {
                    device: bytes(device),
                    owner: bytes(owner),
                    hash: Bytes::copy_from_slice(hash),
                    uri: uri.clone(),
                }),
                ChainEvent::Removed(device) => Kind::Removed(bytes(device)),
                ChainEvent::Approved(project, device) => Kind::Approved(grant(project, device)),
                ChainEvent::Unapproved(project, device) => Kind::Unapproved(grant(project, device)),
            }),
        };
        proto::ChainUpdate {
            first: self.first,
            last: self.last,
            parent_hash: Bytes::copy_from_slice(&self.parent_hash),
            last_hash: Bytes::copy_from_slice(&self.last_hash),
            events: self.events.iter().map(event).collect(),
        }
    }

    /// Reads the wire form, and checks its limits.
    pub fn from_proto(update: proto::ChainUpdate) -> Result<Self, DecodeError> {
        use proto::chain_event::Kind;
        let bad = |reason: &str| DecodeError::malformed("update from a chain", reason);
        if update.events.len() > CHAIN_EVENTS_MAX {
            return Err(bad("too many events"));
        }
        let hash = |bytes: &[u8]| Hash32::try_from(bytes).map_err(|_| bad("a hash is not 32 bytes"));
        let event = |event: proto::ChainEvent| {
            Ok(match event.kind.ok_or_else(|| bad("an event of a newer version"))? {
                Kind::Device(device) if device.uri.len() > DOCUMENT_URI_BYTES_MAX => {
                    return Err(bad("a document's address is too long"));
                }
                Kind::Device(device) => ChainEvent::Device {
                    device: address(&device.device)?,
                    owner: address(&device.owner)?,
                    hash: hash(&device.hash)?,
                    uri: device.uri,
                },
                Kind::Removed(device) => ChainEvent::Removed(address(&device)?),
                Kind::Approved(grant) => ChainEvent::Approved(ProjectId(grant.project_id), address(&grant.device)?),
                Kind::Unapproved(grant) => ChainEvent::Unapproved(ProjectId(grant.project_id), address(&grant.device)?),
            })
        };
        Ok(Self {
            first: update.first,
            last: update.last,
            parent_hash: hash(&update.parent_hash)?,
            last_hash: hash(&update.last_hash)?,
            events: update.events.into_iter().map(event).collect::<Result<_, _>>()?,
        })
    }
}

fn address(bytes: &[u8]) -> Result<Address, DecodeError> {
    Address::try_from(bytes).map_err(|e| DecodeError::malformed("address", e))
}

fn addresses_to_proto(devices: &[Address]) -> proto::Addresses {
    proto::Addresses { addresses: devices.iter().map(|device| Bytes::copy_from_slice(&device.0)).collect() }
}

fn addresses_from_proto(addresses: proto::Addresses) -> Result<Vec<Address>, DecodeError> {
    if addresses.addresses.len() > ORDER_DEVICES_MAX {
        return Err(DecodeError::malformed("order", "too many devices"));
    }
    addresses.addresses.iter().map(|bytes| address(bytes)).collect()
}

/// The wire and storage form of a project's settings.
pub fn settings_to_proto(settings: &ProjectSettings) -> proto::ProjectSettings {
    proto::ProjectSettings {
        group_messages_max: settings.group_messages_max,
        group_bytes_max: settings.group_bytes_max,
        group_age_max_ms: settings.group_age_max_ms,
        retry_window_ms: settings.retry_window_ms,
        public: settings.public,
        devices: match settings.devices {
            None => 0,
            Some(DevicePolicy::Registered) => 1,
            Some(DevicePolicy::Listed) => 2,
            Some(DevicePolicy::Any) => 3,
        },
        signed_keys: settings.signed_keys.iter().map(|key| key.as_str().to_owned()).collect(),
        strict_nonces: settings.strict_nonces,
        readers: settings.readers.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
    }
}

/// What the log keeps of a reader token: `keccak( "lockstep/reader/v1" ‖ token )`. A token is 256 random bits as text, so
/// the hash gives nothing away.
pub fn reader_hash(token: &str) -> Digest {
    Digest(keccak256(&[READER_DOMAIN, token.as_bytes()]))
}

/// Reads the wire and storage form of a project's settings, and checks them.
pub fn settings_from_proto(settings: proto::ProjectSettings) -> Result<ProjectSettings, DecodeError> {
    let bad = |reason: &dyn std::fmt::Display| DecodeError::malformed("settings of a project", reason.to_string());
    let signed_keys: Result<Vec<_>, _> = settings.signed_keys.into_iter().map(SignedKey::try_from).collect();
    let signed_keys = signed_keys.map_err(|e| bad(&e))?;
    let readers: Result<Vec<_>, _> =
        settings.readers.iter().map(|hash| Hash32::try_from(&hash[..]).map(Digest)).collect();
    let settings = ProjectSettings {
        group_messages_max: settings.group_messages_max,
        group_bytes_max: settings.group_bytes_max,
        group_age_max_ms: settings.group_age_max_ms,
        retry_window_ms: settings.retry_window_ms,
        public: settings.public,
        devices: match settings.devices {
            0 => None,
            1 => Some(DevicePolicy::Registered),
            2 => Some(DevicePolicy::Listed),
            3 => Some(DevicePolicy::Any),
            _ => return Err(bad(&"devices")),
        },
        signed_keys,
        strict_nonces: settings.strict_nonces,
        readers: readers.map_err(|e| bad(&e))?,
    };
    settings.check().map_err(|e| bad(&e))?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(kind: OrderKind) -> Order {
        Order { epoch: Epoch(0), project: ProjectId(7), number: 1, expires_ms: TimeMs(9), kind }
    }

    #[test]
    fn an_order_survives_its_wire_form_and_names_its_signer() {
        let (key, network) = (SigningKey::from_bytes([1; 32]).unwrap(), NetworkId([9; 32]));
        let devices = vec![Address([1; 20]), Address([2; 20])];
        let entries = vec![
            DeviceEntry { device: devices[0], document: Some("{}".into()) },
            DeviceEntry { device: devices[1], document: None },
        ];
        let settings = ProjectSettings { devices: Some(DevicePolicy::Listed), ..ProjectSettings::default() };
        let mut digests = std::collections::BTreeSet::new();
        for kind in [
            OrderKind::Settings(settings),
            OrderKind::Owner(devices[0]),
            OrderKind::AddDevices(entries),
            OrderKind::RemoveDevices(devices.clone()),
            OrderKind::RevokeTokens(devices.clone()),
            OrderKind::Rules(RulesOrder { bundle: Some(Bytes::from_static(b"rules")), from: Height(9) }),
            OrderKind::Rules(RulesOrder { bundle: None, from: Height(9) }),
        ] {
            let signed = order(kind).sign(&network, &key);
            let again = SignedOrder::from_proto(signed.to_proto()).unwrap();
            assert_eq!(again, signed);
            assert_eq!(again.signer(&network), Some(key.address()));
            assert_ne!(again.signer(&NetworkId([8; 32])), Some(key.address()));
            digests.insert(signed.order.digest(&network));
            digests.insert(Order { number: 2, ..signed.order.clone() }.digest(&network));
            digests.insert(Order { expires_ms: TimeMs(10), ..signed.order.clone() }.digest(&network));
            digests.insert(Order { epoch: Epoch(1), ..signed.order.clone() }.digest(&network));
            digests.insert(Order { project: ProjectId(8), ..signed.order }.digest(&network));
        }
        assert_eq!(digests.len(), 35, "every field is signed");
    }

    #[test]
    fn limits_are_checked_before_anything_is_kept() {
        let many = vec![Address([1; 20]); ORDER_DEVICES_MAX + 1];
        assert!(Order::from_proto(order(OrderKind::RemoveDevices(many)).to_proto()).is_err());
        let entry = DeviceEntry { device: Address([1; 20]), document: Some("x".repeat(DOCUMENT_BYTES_MAX + 1)) };
        assert!(Order::from_proto(order(OrderKind::AddDevices(vec![entry])).to_proto()).is_err());
        let rules = RulesOrder { bundle: Some(vec![0; RULES_BYTES_MAX + 1].into()), from: Height(1) };
        assert!(Order::from_proto(order(OrderKind::Rules(rules)).to_proto()).is_err());
        let settings = ProjectSettings { retry_window_ms: 1, ..ProjectSettings::default() };
        assert!(Order::from_proto(order(OrderKind::Settings(settings)).to_proto()).is_err());
        assert!(
            Order::from_proto(proto::Order { kind: None, ..order(OrderKind::Owner(Address::ZERO)).to_proto() })
                .is_err()
        );
    }

    #[test]
    fn an_update_from_a_chain_survives_its_wire_form() {
        let device = Address([3; 20]);
        let registered = ChainEvent::Device { device, owner: Address([4; 20]), hash: [5; 32], uri: "ipfs://x".into() };
        let events =
            vec![registered, ChainEvent::Approved(ProjectId(7), device), ChainEvent::Unapproved(ProjectId(7), device)];
        let update = ChainUpdate { first: 5, last: 9, parent_hash: [1; 32], last_hash: [2; 32], events };
        assert_eq!(ChainUpdate::from_proto(update.to_proto()).unwrap(), update);
        let network = NetworkId([9; 32]);
        assert_ne!(update.digest(&network, Epoch(0)), update.digest(&network, Epoch(1)));
    }
}
