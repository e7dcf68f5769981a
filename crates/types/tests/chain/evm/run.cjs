// Compiles docs/solidity/LockstepVerifier.sol, puts it on a chain of anvil, and asks it about proofs.
// Usage: node run.cjs MODULES CONTRACT < input.json
// Input: {"network", "epoch", "genesis": [members], "proofs": [proof, ...]}; prints ["true" | "false" | "reverted", ...].
"use strict";
const fs = require("fs");
const net = require("net");
const path = require("path");
const { spawn } = require("child_process");

const [modules, contract] = process.argv.slice(2);
const load = (name) => require(require.resolve(name, { paths: [modules] }));

// ---- ABI encoding, for the few kinds of types that the contract has.
const word = (n) => BigInt(n).toString(16).padStart(64, "0");
const isDynamic = (t) => t.type.endsWith("]") || t.type === "bytes" || (t.type === "tuple" && t.components.some(isDynamic));

function encode(type, value) {
  if (type.type.endsWith("[]")) {
    const item = { ...type, type: type.type.slice(0, -2) };
    return word(value.length) + sequence(value.map(() => item), value);
  }
  if (type.type === "tuple") {
    return sequence(type.components, type.components.map((c) => field(value, c.name)));
  }
  if (type.type === "bytes") {
    const hex = value.slice(2);
    return word(hex.length / 2) + hex.padEnd(Math.ceil(hex.length / 64) * 64, "0");
  }
  if (type.type === "bool") return word(value ? 1 : 0);
  if (type.type === "bytes32") return value.slice(2);
  return word(value);
}

// The JSON calls a member's address what Solidity does not allow as a name.
const field = (value, name) => (name === "addr" ? value.address : value[name]);

function sequence(types, values) {
  const parts = types.map((t, i) => ({ dynamic: isDynamic(t), code: encode(t, values[i]) }));
  const headBytes = parts.reduce((sum, p) => sum + (p.dynamic ? 32 : p.code.length / 2), 0);
  let [head, tail] = ["", ""];
  for (const p of parts) {
    head += p.dynamic ? word(headBytes + tail.length / 2) : p.code;
    tail += p.dynamic ? p.code : "";
  }
  return head + tail;
}

// ---- The compiler.
function compile() {
  const solc = load("solc");
  const settings = {
    optimizer: { enabled: true },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.methodIdentifiers"] } },
  };
  const sources = { "LockstepVerifier.sol": { content: fs.readFileSync(contract, "utf8") } };
  const find = (file) => ({ contents: fs.readFileSync(path.join(modules, file), "utf8") });
  const out = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources, settings }), { import: find }));
  for (const e of out.errors || []) {
    if (e.severity === "error") throw new Error(e.formattedMessage);
    console.error(e.formattedMessage);
  }
  return out.contracts["LockstepVerifier.sol"].LockstepVerifier;
}

// ---- The chain.
function freePort() {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

// The package is for Linux on x86-64, as continuous integration is; elsewhere name your own.
const anvil = process.env.ANVIL || path.join(modules, "@foundry-rs/anvil-linux-amd64/bin/anvil");

async function startChain() {
  const port = await freePort();
  const child = spawn(anvil, ["--host", "127.0.0.1", "--port", String(port), "--silent"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  child.on("error", (e) => { console.error(e); process.exit(1); });
  child.on("exit", (code) => { console.error(`anvil ended with ${code}`); process.exit(1); });
  process.on("exit", () => child.kill("SIGKILL"));
  const stop = () => new Promise((ended) => {
    child.removeAllListeners("exit").once("exit", ended);
    child.kill("SIGKILL");
  });
  const rpc = async (method, params) => {
    const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
    const answer = await fetch(`http://127.0.0.1:${port}`, {
      method: "POST", headers: { "content-type": "application/json" }, body,
    });
    return answer.json();
  };
  const until = Date.now() + 20_000;
  for (;;) {
    try {
      await rpc("eth_chainId", []);
      return { rpc, stop };
    } catch (e) {
      if (Date.now() > until) throw e;
      await new Promise((next) => setTimeout(next, 50));
    }
  }
}

const result = (answer) => {
  if (answer.error) throw new Error(JSON.stringify(answer.error));
  return answer.result;
};

// A chain that mines at once still needs a moment until it has the receipt.
async function receiptOf(rpc, hash) {
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; ) {
    const receipt = result(await rpc("eth_getTransactionReceipt", [hash]));
    if (receipt) return receipt;
    await new Promise((again) => setTimeout(again, 20));
  }
  throw new Error("the chain has no receipt of the transaction");
}

async function main() {
  const input = JSON.parse(fs.readFileSync(0, "utf8"));
  const made = compile();
  const { rpc, stop } = await startChain();
  const [from] = result(await rpc("eth_accounts", []));
  const make = made.abi.find((f) => f.type === "constructor");
  const code = made.evm.bytecode.object + sequence(make.inputs, [input.network, input.epoch, input.genesis]);
  const hash = result(await rpc("eth_sendTransaction", [{ from, data: "0x" + code, gas: "0x989680" }]));
  const receipt = await receiptOf(rpc, hash);
  if (receipt.status !== "0x1") throw new Error("the contract was not deployed");

  const verify = made.abi.find((f) => f.name === "verify");
  const selector = made.evm.methodIdentifiers[Object.keys(made.evm.methodIdentifiers).find((k) => k.startsWith("verify("))];
  const answers = [];
  for (const proof of input.proofs) {
    const data = "0x" + selector + sequence(verify.inputs, [proof]);
    const answer = await rpc("eth_call", [{ from, to: receipt.contractAddress, data, gas: "0x1c9c380" }, "latest"]);
    answers.push(answer.error ? "reverted" : BigInt(answer.result) === 1n ? "true" : "false");
  }
  console.log(JSON.stringify(answers));
  await stop();
  process.exit(0);
}

main().catch((e) => { console.error(e); process.exit(1); });
