#!/usr/bin/env bash
# Compiles Devices.sol and writes each contract's bytecode as hex beside it. The tests need only the hex, so this
# runs where the source changes. Needs npm.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --ignore-scripts --no-audit --no-fund --prefix . solc@0.8.37
# No metadata hash: the bytecode depends on the code alone.
cat >compile.cjs <<'JS'
const fs = require("fs");
const solc = require("solc");
const here = process.argv[2];
const sources = { "Devices.sol": { content: fs.readFileSync(`${here}/Devices.sol`, "utf8") } };
const settings = {
  optimizer: { enabled: true, runs: 1 },
  evmVersion: "paris",
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["evm.bytecode.object"] } },
};
const out = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources, settings })));
for (const error of out.errors || []) {
  console.error(error.formattedMessage);
  if (error.severity === "error") process.exit(1);
}
for (const [name, contract] of Object.entries(out.contracts["Devices.sol"])) {
  fs.writeFileSync(`${here}/${name}.hex`, contract.evm.bytecode.object + "\n");
}
JS
node compile.cjs "$here"
