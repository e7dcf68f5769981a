// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.20;

// Contracts for tests: the events and view functions that Lockstep reads, and nothing that protects them.

// Indexed parameters as in ioID's registry.
contract Registry {
    event NewDevice(address indexed device, address owner, bytes32 hash, string uri);
    event UpdateDevice(address indexed device, address owner, bytes32 hash, string uri);
    event RemoveDevice(address indexed device, address owner);

    mapping(address => bytes32) private hashes;
    mapping(address => string) private uris;

    function register(address device, address owner, bytes32 hash, string calldata uri) external {
        bool known = hashes[device] != 0;
        hashes[device] = hash;
        uris[device] = uri;
        if (known) emit UpdateDevice(device, owner, hash, uri);
        else emit NewDevice(device, owner, hash, uri);
    }

    function remove(address device, address owner) external {
        delete hashes[device];
        delete uris[device];
        emit RemoveDevice(device, owner);
    }

    function documentURI(address device) external view returns (string memory) {
        require(hashes[device] != 0, "unknown device");
        return uris[device];
    }
}

// Indexed parameters as in W3bstream's contract.
contract ProjectDevice {
    event Approve(uint256 project, address indexed device);
    event Unapprove(uint256 project, address indexed device);

    mapping(uint256 => mapping(address => bool)) public approved;

    function set(uint256 project, address[] calldata devices, bool value) external {
        for (uint256 i = 0; i < devices.length; i++) {
            approved[project][devices[i]] = value;
            if (value) emit Approve(project, devices[i]);
            else emit Unapprove(project, devices[i]);
        }
    }
}

// The same events without indexed parameters, both contracts in one.
contract Plain {
    event NewDevice(address device, address owner, bytes32 hash, string uri);
    event Approve(uint256 project, address device);
    event Unapprove(uint256 project, address device);

    function register(address device, address owner, bytes32 hash, string calldata uri) external {
        emit NewDevice(device, owner, hash, uri);
    }

    function set(uint256 project, address[] calldata devices, bool value) external {
        for (uint256 i = 0; i < devices.length; i++) {
            if (value) emit Approve(project, devices[i]);
            else emit Unapprove(project, devices[i]);
        }
    }
}

// Indexed parameters as in W3bstream's contract.
contract TaskManager {
    event TaskAssigned(uint256 indexed project, bytes32 indexed task, address indexed prover, uint256 deadline);
    event TaskSettled(uint256 indexed project, bytes32 indexed task, address prover);

    function assign(uint256 project, bytes32 task, address prover, uint256 deadline) external {
        emit TaskAssigned(project, task, prover, deadline);
    }

    function settle(uint256 project, bytes32 task, address prover) external {
        emit TaskSettled(project, task, prover);
    }
}
