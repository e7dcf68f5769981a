//! Proofs in a real EVM: what `verify_proof` says, the contract in docs/solidity says too, also of altered proofs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lockstep_types::proof::{Proof, verify_proof};
use lockstep_types::*;
use serde_json::{Value, json};

use super::builder::*;
use super::proofs::{alterations, proof_of};

/// Compiler, contracts and EVM, installed once for each state of the lock file.
fn modules(source: &Path) -> PathBuf {
    let lock = std::fs::read(source.join("package-lock.json")).unwrap();
    let name = hex::encode(&keccak256(&[&lock])[..8]);
    let parent = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let installed = parent.join(format!("evm-{name}"));
    if !installed.exists() {
        // Made beside its place and then moved there: an install that was cut short is not taken for one.
        let making = parent.join(format!("evm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&making).unwrap();
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(source.join(file), making.join(file)).unwrap();
        }
        let npm = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"])
            .current_dir(&making)
            .output()
            .expect("npm is missing: `scripts/deps.sh test` installs it");
        if !npm.status.success() {
            std::fs::remove_dir_all(&making).unwrap();
            panic!("{}", String::from_utf8_lossy(&npm.stderr));
        }
        if std::fs::rename(&making, &installed).is_err() {
            // Another run was faster.
            std::fs::remove_dir_all(&making).unwrap();
        }
    }
    installed.join("node_modules")
}

/// What the contract says of each proof.
fn in_evm(input: &Value) -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chain/evm");
    let contract = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/solidity/LockstepVerifier.sol");
    let mut node = Command::new("node")
        .arg(source.join("run.cjs"))
        .args([modules(&source), contract])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is missing: `scripts/deps.sh test` installs it");
    node.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Three voters become four, one of the first leaves, and a fifth observes.
fn history() -> Net {
    let mut net = Net::new(2);
    net.batch((0..5).map(|device| signed(device, "a")).collect(), false, None);
    net.certify(1);
    net.admit();
    net.set_voter(3, true);
    net.batch(vec![signed(0, "b"), unsigned(&key(4), "c")], false, None);
    net.batch(vec![signed(1, "d")], true, None);
    net.batch(vec![signed(2, "e")], false, None);
    net.certify(net.height());
    net.remove(0);
    net.admit();
    net.batch((0..9).map(|device| signed(device, "f")).collect(), false, None);
    net.certify(net.height());
    net
}

#[test]
fn a_contract_takes_the_same_proofs_and_no_altered_one() {
    let net = history();
    net.check().unwrap();
    let total: u64 = net.batches.iter().map(|batch| batch.messages.len() as u64).sum();
    let mut proofs: Vec<Proof> = (1..=total).map(|sequence| proof_of(&net, sequence)).collect();
    let good = proofs.len();
    // The sixth message has headers between its batch and the certified one, and two changes before it.
    let proof = &proofs[5];
    assert!(proof.headers.len() == 2 && proof.boundaries.len() == 2);
    let altered = alterations(&serde_json::to_value(proof).unwrap());
    let readable = altered.into_iter().filter_map(|json| serde_json::from_value::<Proof>(json).ok());
    let altered: Vec<Proof> = readable.filter(|altered| altered != proof && altered.version == proof.version).collect();
    assert!(altered.len() > 150, "{}", altered.len());
    proofs.extend(altered.into_iter().filter(|altered| altered.network == net.genesis.id().unwrap()));

    let said = in_evm(&json!({
        "network": net.genesis.id().unwrap(),
        "epoch": 0,
        "genesis": net.genesis.first_set().unwrap(),
        "proofs": proofs,
    }));
    assert_eq!(said.len(), proofs.len());
    for (i, (proof, said)) in proofs.iter().zip(&said).enumerate() {
        let holds = verify_proof(&net.genesis, proof, None).is_ok();
        assert_eq!(holds, i < good, "proof {i}");
        assert_eq!(said == "true", holds, "proof {i}: the contract said {said} of {}", json!(proof));
    }
}
