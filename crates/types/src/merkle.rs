//! Merkle trees of the OpenZeppelin kind: leaves are hashed twice, pairs are sorted before hashing, so that a
//! contract checks a proof with `MerkleProof.verify`. An odd node moves up unchanged. No leaves: root of zeros.

use crate::hash::{Hash32, keccak256};

/// A leaf's hash: keccak256 twice over its ABI encoding, so that no inner node passes for a leaf.
pub fn leaf_hash(encoded: &[u8]) -> Hash32 {
    keccak256(&[&keccak256(&[encoded])])
}

fn pair_hash(a: &Hash32, b: &Hash32) -> Hash32 {
    if a <= b { keccak256(&[a, b]) } else { keccak256(&[b, a]) }
}

fn level_up(level: &[Hash32]) -> Vec<Hash32> {
    level
        .chunks(2)
        .map(|pair| match pair {
            [a, b] => pair_hash(a, b),
            rest => rest[0],
        })
        .collect()
}

/// Root over leaf hashes, in order.
pub fn root(leaves: Vec<Hash32>) -> Hash32 {
    let mut level = leaves;
    while level.len() > 1 {
        level = level_up(&level);
    }
    level.first().copied().unwrap_or_default()
}

/// A whole tree, for whoever needs the paths of many leaves: each costs no hash.
#[derive(Debug, Clone)]
pub struct Tree {
    levels: Vec<Vec<Hash32>>,
}

impl Tree {
    /// Over leaf hashes, in order.
    pub fn new(leaves: Vec<Hash32>) -> Self {
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level_up(level);
            levels.push(above);
        }
        Self { levels }
    }

    /// Siblings from the leaf at `index` up to the root; `None` if there is no such leaf.
    pub fn path(&self, index: usize) -> Option<Vec<Hash32>> {
        self.levels.first()?.get(index)?;
        let numbered = self.levels.iter().enumerate();
        Some(numbered.filter_map(|(above, level)| level.get((index >> above) ^ 1).copied()).collect())
    }
}

/// Siblings from the leaf at `index` up to the root; `None` if there is no such leaf.
pub fn proof(leaves: &[Hash32], index: usize) -> Option<Vec<Hash32>> {
    Tree::new(leaves.to_vec()).path(index)
}

/// Whether `path` leads from `leaf` to `root`.
pub fn verify(leaf: Hash32, path: &[Hash32], root: &Hash32) -> bool {
    path.iter().fold(leaf, |node, sibling| pair_hash(&node, sibling)) == *root
}

/// Solidity's ABI encoding of a `uint256` that fits 64 bits.
pub fn abi_u64(value: u64) -> [u8; 32] {
    let mut out = [0; 32];
    out[24..].copy_from_slice(&value.to_be_bytes());
    out
}

/// Solidity's ABI encoding of an `address`.
pub fn abi_address(address: &crate::ids::Address) -> [u8; 32] {
    let mut out = [0; 32];
    out[12..].copy_from_slice(&address.0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_every_size_has_a_proof_and_no_other_leaf_passes() {
        for size in 1..34_usize {
            let leaves: Vec<_> = (0..size).map(|i| leaf_hash(&abi_u64(i as u64))).collect();
            let top = root(leaves.clone());
            for (i, leaf) in leaves.iter().enumerate() {
                let path = proof(&leaves, i).unwrap();
                assert!(verify(*leaf, &path, &top), "leaf {i} of {size}");
                assert!(!verify(leaf_hash(b"other"), &path, &top));
            }
            assert!(proof(&leaves, size).is_none());
        }
        assert_eq!(root(Vec::new()), [0; 32]);
    }
}
