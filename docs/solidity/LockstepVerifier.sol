// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.20;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

/// @title Checks a proof of `GET /api/proofs/{message id}` on a chain: that a message stands at its place in the order
/// of a Lockstep network, and that a majority of the network's voters certified it.
/// @notice An example to build on. It is told the network and its first members, and follows the changes of the members
/// that a proof brings along. A contract that checks many proofs had better follow each change once, and remember it.
/// What is hashed is specified in docs/formats.md. Signatures have V 27 or 28 here.
contract LockstepVerifier {
    struct Message {
        uint256 sequence;
        bytes32 id;
        uint256 project_id;
        address device;
        bytes32 data_hash;
    }

    struct Header {
        uint32 rules_version;
        bytes32 network;
        uint64 epoch;
        uint64 height;
        bytes32 parent;
        uint64 time_ms;
        uint64 first_sequence;
        uint64 message_count;
        bytes32 messages_root;
        uint64 first_task_number;
        uint64 task_count;
        bytes32 tasks_root;
        bytes32 members;
        bytes32 next_members;
        bytes32 effects;
    }

    struct Member {
        uint64 node;
        address addr;
        bool voter;
    }

    struct VoterSignature {
        uint64 node;
        bytes signature;
    }

    struct Certificate {
        uint64 height;
        bytes32 hash;
        VoterSignature[] signatures;
    }

    struct Boundary {
        Header header;
        Member[] members;
        Certificate certificate;
    }

    struct Proof {
        Message message;
        bytes32[] path;
        Header header;
        Header[] headers;
        Certificate certificate;
        Member[] members;
        Boundary[] boundaries;
    }

    /// The network's id, and the epoch of its history.
    bytes32 public immutable network;
    uint64 public immutable epoch;
    /// The members at genesis.
    Member[] private genesis;

    constructor(bytes32 network_, uint64 epoch_, Member[] memory genesis_) {
        network = network_;
        epoch = epoch_;
        for (uint256 i = 0; i < genesis_.length; i++) {
            genesis.push(genesis_[i]);
        }
    }

    /// Whether the proof holds. A proof that cannot be read reverts.
    function verify(Proof calldata proof) external view returns (bool) {
        (Member[] memory members, uint64 changed, bool good) = follow(proof.boundaries);
        if (!good || membersHash(proof.members) != membersHash(members) || !inBatch(proof)) {
            return false;
        }
        bytes32 inForce = membersHash(members);
        if (!isUnder(proof.header, inForce)) {
            return false;
        }
        bytes32 hash = headerHash(proof.header);
        uint64 height = proof.header.height;
        bool boundary = proof.header.members != proof.header.next_members;
        for (uint256 i = 0; i < proof.headers.length; i++) {
            Header calldata header = proof.headers[i];
            if (boundary || header.parent != hash || header.height != height + 1 || !isUnder(header, inForce)) {
                return false;
            }
            hash = headerHash(header);
            height = header.height;
            boundary = header.members != header.next_members;
        }
        return height > changed && isCertified(proof.certificate, height, hash, members);
    }

    /// The message's leaf leads to the root in its batch's header.
    function inBatch(Proof calldata proof) internal pure returns (bool) {
        Message calldata message = proof.message;
        uint256 first = proof.header.first_sequence;
        if (message.sequence < first || message.sequence - first >= proof.header.message_count) {
            return false;
        }
        bytes32 leaf = keccak256(
            bytes.concat(
                keccak256(
                    abi.encode(message.sequence, message.id, message.project_id, message.device, message.data_hash)
                )
            )
        );
        return MerkleProof.verifyCalldata(proof.path, proof.header.messages_root, leaf);
    }

    /// From the members at genesis, over certified changes, to those in force.
    function follow(Boundary[] calldata boundaries) internal view returns (Member[] memory, uint64, bool) {
        Member[] memory members = genesis;
        uint64 changed = 0;
        for (uint256 i = 0; i < boundaries.length; i++) {
            Header calldata header = boundaries[i].header;
            bool good = isUnder(header, membersHash(members)) && header.height > changed
                && header.members != header.next_members && isSorted(boundaries[i].members)
                && voters(boundaries[i].members) > 0 && membersHash(boundaries[i].members) == header.next_members
                && isCertified(boundaries[i].certificate, header.height, headerHash(header), members);
            if (!good) {
                return (members, changed, false);
            }
            members = boundaries[i].members;
            changed = header.height;
        }
        return (members, changed, true);
    }

    function isUnder(Header calldata header, bytes32 inForce) internal view returns (bool) {
        return header.network == network && header.epoch == epoch && header.members == inForce;
    }

    /// A majority of the voters signed, each once, and nobody else.
    function isCertified(Certificate calldata certificate, uint64 height, bytes32 hash, Member[] memory members)
        internal
        pure
        returns (bool)
    {
        VoterSignature[] calldata signatures = certificate.signatures;
        if (certificate.height != height || certificate.hash != hash || signatures.length < voters(members) / 2 + 1) {
            return false;
        }
        bytes32 digest = keccak256(bytes.concat("lockstep/certificate/v1", hash));
        for (uint256 i = 0; i < signatures.length; i++) {
            if (i > 0 && signatures[i].node <= signatures[i - 1].node) {
                return false;
            }
            address voter = voterAddress(members, signatures[i].node);
            if (voter == address(0) || recover(digest, signatures[i].signature) != voter) {
                return false;
            }
        }
        return true;
    }

    function recover(bytes32 digest, bytes calldata signature) internal pure returns (address) {
        if (signature.length != 65) {
            return address(0);
        }
        return ecrecover(digest, uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64]));
    }

    function voterAddress(Member[] memory members, uint64 node) internal pure returns (address) {
        for (uint256 i = 0; i < members.length; i++) {
            if (members[i].voter && members[i].node == node) {
                return members[i].addr;
            }
        }
        return address(0);
    }

    function voters(Member[] memory members) internal pure returns (uint256 count) {
        for (uint256 i = 0; i < members.length; i++) {
            count += members[i].voter ? 1 : 0;
        }
    }

    function isSorted(Member[] calldata members) internal pure returns (bool) {
        for (uint256 i = 1; i < members.length; i++) {
            if (members[i].node <= members[i - 1].node) {
                return false;
            }
        }
        return true;
    }

    function membersHash(Member[] memory members) public pure returns (bytes32) {
        bytes memory all = abi.encodePacked("lockstep/members/v1", uint64(members.length));
        for (uint256 i = 0; i < members.length; i++) {
            all = abi.encodePacked(all, members[i].node, members[i].addr, members[i].voter);
        }
        return keccak256(all);
    }

    function headerHash(Header calldata h) public pure returns (bytes32) {
        bytes memory place =
            abi.encodePacked("lockstep/batch/v1", h.rules_version, h.network, h.epoch, h.height, h.parent, h.time_ms);
        bytes memory messages = abi.encodePacked(h.first_sequence, h.message_count, h.messages_root);
        bytes memory tasks = abi.encodePacked(h.first_task_number, h.task_count, h.tasks_root);
        return keccak256(bytes.concat(place, messages, tasks, h.members, h.next_members, h.effects));
    }
}
