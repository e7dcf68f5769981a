//! A chain of its own, with contracts that have the events which `lockstep-chain` reads.
//!
//! The chain is anvil's, which `testnet/install-anvil.sh` installs. Everything here panics with a reason, as a
//! test would. Each block holds one transaction unless more are mined.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockstep_chain::abi::{Word, address_word, call, number_word};
use lockstep_chain::{ANSWER_BYTES_MAX, ChainSource, Endpoint, Rpc};
use lockstep_types::{Address, Hash32, ProjectId, TaskId};
use serde_json::{Value, json};

use crate::ports::free_port;
use crate::process::tool;
use crate::wait::eventually;

/// For anything that anvil does.
const DEADLINE: Duration = Duration::from_secs(30);
/// Gas of each transaction: enough for all the tests do.
const GAS: &str = "0xe4e1c0";

/// Bytecode of the contracts in `contracts/Devices.sol`, as hex.
pub mod bytecode {
    /// ioID's registry: `register(device, owner, hash, uri)`, `remove(device, owner)`, `documentURI`.
    pub const REGISTRY: &str = include_str!("../contracts/Registry.hex");
    /// W3bstream's project-device: `set(project, devices, value)`, `approved`.
    pub const PROJECT_DEVICE: &str = include_str!("../contracts/ProjectDevice.hex");
    /// Events of both without indexed parameters.
    pub const PLAIN: &str = include_str!("../contracts/Plain.hex");
    /// W3bstream's task manager: `assign(project, task, prover, deadline)`, `settle(project, task, prover)`.
    pub const TASK_MANAGER: &str = include_str!("../contracts/TaskManager.hex");
}

/// A running chain. Ends with this value.
#[derive(Debug)]
pub struct Anvil {
    port: u16,
    chain_id: u64,
    /// Holds the chain while it is stopped, and what anvil writes meanwhile.
    home: PathBuf,
    process: Option<Child>,
    rpc: Rpc,
    account: Address,
}

impl Anvil {
    /// Starts a new chain and waits until it answers.
    pub async fn start(chain_id: u64) -> Self {
        let port = free_port();
        let home = std::env::temp_dir().join(format!("lockstep-anvil-{}-{port}", std::process::id()));
        std::fs::remove_dir_all(&home).ok();
        std::fs::create_dir_all(&home).expect("a directory for temporary files");
        let rpc = Rpc::new(endpoint_at(port)).expect("an HTTP client");
        let mut anvil = Self { port, chain_id, home, process: None, rpc, account: Address::ZERO };
        anvil.start_again().await;
        let accounts = anvil.ask("eth_accounts", json!([])).await;
        anvil.account = accounts[0].as_str().and_then(|text| text.parse().ok()).expect("an unlocked account");
        anvil
    }

    /// Stops the chain; nothing listens on its port any more. [`Anvil::start_again`] goes on where it was.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("the chain runs");
        // The chain is written at SIGTERM only. The standard library can but kill.
        let signalled = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
        assert!(signalled.expect("the program kill").success());
        eventually("anvil ends", DEADLINE, async || match process.try_wait() {
            Ok(Some(_)) => Ok(()),
            _ => Err("it runs".to_owned()),
        })
        .await;
    }

    /// Starts the chain after [`Anvil::stop`], on the same port.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the chain runs");
        let mut command = Command::new(binary());
        command.args(["--quiet", "--host", "127.0.0.1", "--accounts", "1", "--port", &self.port.to_string()]);
        command.args(["--chain-id", &self.chain_id.to_string()]).arg("--state").arg(self.home.join("state.json"));
        command.arg("--cache-path").arg(self.home.join("cache"));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        self.process = Some(process.expect("anvil is missing: testnet/install-anvil.sh installs it"));
        eventually("anvil answers", DEADLINE, async || {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            assert_eq!(ended, None, "anvil ended at once");
            self.rpc.call::<String>("eth_chainId", json!([]), ANSWER_BYTES_MAX).await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// The URL to ask.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The same, for [`Rpc`].
    pub fn endpoint(&self) -> Endpoint {
        endpoint_at(self.port)
    }

    /// Asks anything.
    pub async fn ask(&self, method: &'static str, params: Value) -> Value {
        self.rpc.call(method, params, ANSWER_BYTES_MAX).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The newest block.
    pub async fn head(&self) -> u64 {
        self.ask("eth_blockNumber", json!([])).await.as_str().and_then(quantity).expect("a number")
    }

    /// Adds empty blocks.
    pub async fn mine(&self, blocks: u64) {
        self.ask("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    /// Replaces the newest `depth` blocks by as many empty ones.
    pub async fn reorg(&self, depth: u64) {
        self.ask("anvil_reorg", json!([depth, []])).await;
    }

    /// Makes a contract of bytecode in hex; its constructor takes nothing.
    pub async fn deploy(&self, bytecode: &str) -> Address {
        let receipt = self.transact(json!({ "data": format!("0x{}", bytecode.trim()) })).await;
        receipt["contractAddress"].as_str().and_then(|text| text.parse().ok()).expect("a contract's address")
    }

    /// Sends a transaction and waits for it; returns its block.
    pub async fn send(&self, to: Address, data: &[u8]) -> u64 {
        let receipt = self.transact(json!({ "to": to, "data": format!("0x{}", hex::encode(data)) })).await;
        receipt["blockNumber"].as_str().and_then(quantity).expect("a number")
    }

    async fn transact(&self, mut transaction: Value) -> Value {
        transaction["from"] = json!(self.account);
        transaction["gas"] = json!(GAS);
        let hash = self.ask("eth_sendTransaction", json!([transaction])).await;
        let receipt = eventually("there is a receipt", DEADLINE, async || {
            let receipt = self.ask("eth_getTransactionReceipt", json!([hash])).await;
            if receipt.is_null() { Err("there is none".to_owned()) } else { Ok(receipt) }
        })
        .await;
        assert_eq!(receipt["status"], "0x1", "the transaction failed: {receipt}");
        receipt
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
        std::fs::remove_dir_all(&self.home).ok();
    }
}

/// The three contracts of a [`ChainSource`] on a chain.
#[derive(Debug, Clone, Copy)]
pub struct Contracts {
    /// Which devices there are.
    pub registry: Address,
    /// Which of them may submit where.
    pub project_device: Address,
    /// What became of tasks.
    pub task_manager: Address,
}

impl Contracts {
    /// Deploys all three, in three blocks.
    pub async fn deploy(anvil: &Anvil) -> Self {
        Self {
            registry: anvil.deploy(bytecode::REGISTRY).await,
            project_device: anvil.deploy(bytecode::PROJECT_DEVICE).await,
            task_manager: anvil.deploy(bytecode::TASK_MANAGER).await,
        }
    }

    /// A source that reads them from the first block.
    pub fn source(&self, anvil: &Anvil) -> ChainSource {
        let source = ChainSource::new(anvil.chain_id, self.registry, self.project_device);
        ChainSource { task_manager: Some(self.task_manager), ..source }
    }

    /// Registers a device, or changes its record; returns the block.
    pub async fn register(&self, anvil: &Anvil, device: Address, owner: Address, hash: Hash32, uri: &[u8]) -> u64 {
        anvil.send(self.registry, &register_call(device, owner, hash, uri)).await
    }

    /// Deletes a device's record; returns the block.
    pub async fn remove(&self, anvil: &Anvil, device: Address, owner: Address) -> u64 {
        let arguments = [address_word(&device), address_word(&owner)];
        anvil.send(self.registry, &call("remove(address,address)", &arguments)).await
    }

    /// Lets devices submit to a project, all in one block; returns the block.
    pub async fn approve(&self, anvil: &Anvil, project: ProjectId, devices: &[Address]) -> u64 {
        anvil.send(self.project_device, &set_call(number_word(project.0), devices, true)).await
    }

    /// Lets them no longer do so; returns the block.
    pub async fn unapprove(&self, anvil: &Anvil, project: ProjectId, devices: &[Address]) -> u64 {
        anvil.send(self.project_device, &set_call(number_word(project.0), devices, false)).await
    }

    /// Gives a task to a prover; returns the block.
    pub async fn assign(&self, anvil: &Anvil, project: ProjectId, task: TaskId, prover: Address, deadline: u64) -> u64 {
        let arguments = [number_word(project.0), task.0, address_word(&prover), number_word(deadline)];
        anvil.send(self.task_manager, &call("assign(uint256,bytes32,address,uint256)", &arguments)).await
    }

    /// Takes the task's proof for good; returns the block.
    pub async fn settle(&self, anvil: &Anvil, project: ProjectId, task: TaskId, prover: Address) -> u64 {
        let arguments = [number_word(project.0), task.0, address_word(&prover)];
        anvil.send(self.task_manager, &call("settle(uint256,bytes32,address)", &arguments)).await
    }
}

/// The data of `register(device, owner, hash, uri)`.
pub fn register_call(device: Address, owner: Address, hash: Hash32, uri: &[u8]) -> Vec<u8> {
    let head = [address_word(&device), address_word(&owner), hash, number_word(4 * 32)];
    let mut data = call("register(address,address,bytes32,string)", &head);
    data.extend(number_word(uri.len() as u64));
    data.extend(uri);
    data.resize(data.len() + (32 - uri.len() % 32) % 32, 0);
    data
}

/// The data of `set(project, devices, value)`; the project can be any word.
pub fn set_call(project: Word, devices: &[Address], value: bool) -> Vec<u8> {
    let head = [project, number_word(3 * 32), number_word(value.into())];
    let mut data = call("set(uint256,address[],bool)", &head);
    data.extend(number_word(devices.len() as u64));
    devices.iter().for_each(|device| data.extend(address_word(device)));
    data
}

/// Where `testnet/install-anvil.sh` puts it, or what LOCKSTEP_ANVIL names.
fn binary() -> PathBuf {
    std::env::var_os("LOCKSTEP_ANVIL").map_or_else(|| tool("anvil"), PathBuf::from)
}

/// A number as JSON-RPC writes it.
fn quantity(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn endpoint_at(port: u16) -> Endpoint {
    format!("http://127.0.0.1:{port}").parse().expect("a URL")
}
