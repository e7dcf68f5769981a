#!/usr/bin/env python3
"""Computes the test vectors of docs/formats.md, from that page alone.

It shares no code with Lockstep and uses nothing but Python: keccak, secp256k1 with RFC 6979, and the few bytes of
protobuf that are hashed are written out below. The tests of Lockstep compare what the page says with what Lockstep does.
"""
import hashlib
import hmac

# ---- keccak256

ROTATIONS = [[0, 36, 3, 41, 18], [1, 44, 10, 45, 2], [62, 6, 43, 15, 61], [28, 55, 25, 21, 56], [27, 20, 39, 8, 14]]
MASK = (1 << 64) - 1


def round_constants():
    constants, lfsr = [], 1
    for _ in range(24):
        constant = 0
        for j in range(7):
            if lfsr & 1:
                constant |= 1 << ((1 << j) - 1)
            lfsr = (lfsr << 1) ^ (0x171 if lfsr & 0x80 else 0)
        constants.append(constant)
    return constants


ROUND_CONSTANTS = round_constants()


def rotate(x, n):
    return ((x << n) | (x >> (64 - n))) & MASK if n else x


def permute(a):
    for constant in ROUND_CONSTANTS:
        c = [a[x][0] ^ a[x][1] ^ a[x][2] ^ a[x][3] ^ a[x][4] for x in range(5)]
        d = [c[(x - 1) % 5] ^ rotate(c[(x + 1) % 5], 1) for x in range(5)]
        a = [[a[x][y] ^ d[x] for y in range(5)] for x in range(5)]
        b = [[0] * 5 for _ in range(5)]
        for x in range(5):
            for y in range(5):
                b[y][(2 * x + 3 * y) % 5] = rotate(a[x][y], ROTATIONS[x][y])
        a = [[b[x][y] ^ (~b[(x + 1) % 5][y] & b[(x + 2) % 5][y] & MASK) for y in range(5)] for x in range(5)]
        a[0][0] ^= constant
    return a


def keccak(*parts):
    data, rate = b"".join(parts), 136
    padded = bytearray(data + b"\x01" + b"\x00" * (-(len(data) + 1) % rate))
    padded[-1] |= 0x80
    state = [[0] * 5 for _ in range(5)]
    for start in range(0, len(padded), rate):
        for i in range(rate // 8):
            state[i % 5][i // 5] ^= int.from_bytes(padded[start + 8 * i:start + 8 * i + 8], "little")
        state = permute(state)
    return b"".join(state[i % 5][i // 5].to_bytes(8, "little") for i in range(4))


assert keccak().hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"

# ---- secp256k1

P = 2**256 - 2**32 - 977
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
G = (0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
     0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8)


def add(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, P) % P
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(k, point=G):
    result = None
    while k:
        if k & 1:
            result = add(result, point)
        point, k = add(point, point), k >> 1
    return result


def nonce(secret, digest):
    """RFC 6979, 3.2, with SHA-256."""
    x, h = secret, (int.from_bytes(digest, "big") % N).to_bytes(32, "big")
    v, k = b"\x01" * 32, b"\x00" * 32
    mac = lambda key, data: hmac.new(key, data, hashlib.sha256).digest()
    for tag in (b"\x00", b"\x01"):
        k = mac(k, v + tag + x + h)
        v = mac(k, v)
    while True:
        v = mac(k, v)
        candidate = int.from_bytes(v, "big")
        if 1 <= candidate < N:
            return candidate
        k = mac(k, v + b"\x00")
        v = mac(k, v)


def sign(secret, digest):
    k, z, d = nonce(secret, digest), int.from_bytes(digest, "big"), int.from_bytes(secret, "big")
    point = multiply(k)
    r, v = point[0] % N, point[1] & 1
    s = pow(k, -1, N) * (z + r * d) % N
    if s > N // 2:
        s, v = N - s, v ^ 1
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([v])


def public(secret):
    return multiply(int.from_bytes(secret, "big"))


def address(secret):
    x, y = public(secret)
    return keccak(x.to_bytes(32, "big"), y.to_bytes(32, "big"))[12:]


def compressed(secret):
    x, y = public(secret)
    return bytes([2 + (y & 1)]) + x.to_bytes(32, "big")


# ---- what the page specifies


def u32(n):
    return n.to_bytes(4, "big")


def u64(n):
    return n.to_bytes(8, "big")


def abi(n):
    return n.to_bytes(32, "big")


def counted(text):
    return u64(len(text)) + text


def content_id(api, device, project, version, data):
    return keccak(b"lockstep/content/v1", bytes([api]), device, u64(project), counted(version), counted(b""), data)


def message_id(content, count, since=0):
    if since:
        return keccak(b"lockstep/reappeared/v1", content, u64(count), u64(since))
    return content if count == 1 else keccak(b"lockstep/repeat/v1", content, u64(count))


def leaf(encoding):
    return keccak(keccak(encoding))


def message_leaf(sequence, identity, project, device, data):
    return leaf(abi(sequence) + identity + abi(project) + bytes(12) + device + keccak(data))


def pair(a, b):
    return keccak(min(a, b), max(a, b))


def task_id(network, project, first, ids):
    return keccak(b"lockstep/task/v1", network, u64(project), u64(first), u64(len(ids)), *ids)


def ruled_hash(device, group, window, payload, outputs):
    flags = bytes([window is not None, payload is not None, outputs is not None])
    return keccak(b"lockstep/ruled/v1", device, counted(group), flags, ((window or 0) & MASK).to_bytes(8, "big"),
                  bytes(32) if payload is None else keccak(payload), counted(b" ".join(sorted(outputs or []))))


def ruled_task_id(network, project, first, ids, ruled):
    return keccak(b"lockstep/task/v2", network, u64(project), u64(first), u64(len(ids)), *ids, ruled)


def task_leaf(number, identity):
    return leaf(abi(number) + identity)


def members_hash(members):
    encoded = [u64(node) + addr + bytes([voter]) for node, addr, voter in members]
    return keccak(b"lockstep/members/v1", u64(len(members)), *encoded)


def header(rules, network, height, parent, time, messages, tasks, members, next_members, effects):
    (first, count, root), (first_task, task_count, task_root) = messages, tasks
    return keccak(b"lockstep/batch/v1", u32(rules), network, u64(0), u64(height), parent, u64(time), u64(first),
                  u64(count), root, u64(first_task), u64(task_count), task_root, members, next_members, effects)


def roll(before, *effects):
    return keccak(b"lockstep/effects/v1", before, *effects)


def occurrence(content, height, count, sequence, time, since):
    return b"\x01" + content + u64(height) + u64(count) + u64(sequence) + u64(time) + u64(since)


def place(identity, sequence):
    return b"\x02" + identity + u64(sequence)


def task_place(identity, number):
    return b"\x03" + identity + u64(number)


def progress(output, number):
    return b"\x06" + counted(output) + u64(number)


def horizon(height, sequence, task):
    return b"\x08" + u64(height) + u64(sequence) + u64(task)


def gap(output, first, last):
    return b"\x09" + counted(output) + u64(first) + u64(last)


def rules_changed(version):
    return b"\x0a" + u32(version)


# ---- the protobuf of the members record, which tag 7 is a digest of


def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def number(field, n):
    return varint(field << 3) + varint(n) if n else b""


def text(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data if data else b""


def message(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def member_record(member):
    return (text(1, member["name"]) + text(2, member["key"]) + text(3, member["incarnation"])
            + text(4, member["p2p"]) + text(5, member["http"]))


def members_record(known, changes, pending, boundary):
    out = number(1, 1)
    for node, member, role, admitted in known:
        out += message(2, number(1, node) + message(2, member_record(member)) + number(3, role) + number(4, admitted))
    out += number(3, changes)
    if pending:
        out += message(4, message(1, pending[0]) + number(2, pending[1]))
    if boundary:
        members = [number(1, node) + text(2, addr) + number(3, voter) for node, addr, voter in boundary[0]]
        out += message(6, b"".join(message(1, member) for member in members)) + number(7, boundary[1])
    return out


def members_changed(record):
    return b"\x07" + keccak(record)


# ---- the vectors


def show(what, value):
    if len(value) == 65:
        print(f"| {what}, R ‖ S | `0x{value[:32].hex()}` `{value[32:64].hex()}` |")
        print(f"| V | `{value[64:].hex()}` |")
    else:
        print(f"| {what} | `0x{value.hex()}` |")


def title(words):
    print(f"\n{words}\n\n| what | value |\n| --- | --- |")


D = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
NODE, SECOND = b"\x01" * 32, b"\x02" * 32
PROJECT, VERSION, DATA = 7, b"0.1", b'{"celsius":21.5}'
TIME = 1795338000000

title("Keys")
show("address of D", address(D))
show("address of N", address(NODE))
show("N, compressed", compressed(NODE))

title("A message")
device_text = b'{"projectID":7,"projectVersion":"0.1","data":"{\\"celsius\\":21.5}"}'
show("its digest", keccak(device_text))
show("signature of D", sign(D, keccak(device_text)))
content = content_id(1, address(D), PROJECT, VERSION, DATA)
show("content id, first message id", content)
show("second message id", message_id(content, 2))
show("message id where it comes again for the first time after batches below 4 were forgotten", message_id(content, 1, 4))
show("the second time after that", message_id(content, 2, 4))

title("The same, unsigned")
unsigned = content_id(2, bytes(20), PROJECT, VERSION, DATA)
word = keccak(b"lockstep/ingress/v1", unsigned)
show("content id", unsigned)
show("digest of the ingress word", word)
show("signature of N", sign(NODE, word))

settings = '{"group_messages_max":1,"group_bytes_max":1048576,"group_age_max_ms":5000,"retry_window_ms":10000,"public":false'
genesis = ('{"version":1,"format":1,"network":"example","members":[{"name":"node-1","public_key":"0x' + compressed(NODE).hex()
           + '","incarnation":"0x' + "11" * 16 + '","p2p":"/ip4/127.0.0.1/tcp/9100","http":"http://127.0.0.1:9000"}],'
           '"params":{"allow_unsigned":true,"allow_unknown_projects":false,"public_payloads":false,'
           '"message_bytes_max":65536,"open_groups_max":65536,"first_task_number":1,"default_project":' + settings
           + '},"projects":{"7":' + settings + ',"devices":"any"}}}}')

title("Batch 1")
network = keccak(b"lockstep/genesis/v1", genesis.encode())
first_set = [(1, address(NODE), 1)]
one = members_hash(first_set)
show("network id", network)
show("members hash", one)
root_1 = message_leaf(1, content, PROJECT, address(D), DATA)
show("message leaf, messages root", root_1)
task_1 = task_id(network, PROJECT, 1, [content])
show("task id", task_1)
task_root_1 = task_leaf(1, task_1)
show("task leaf, tasks root", task_root_1)
tag_1 = occurrence(content, 1, 1, 1, TIME, 0)
print(f"| effects: tag 1 … | `01` content id `{tag_1[33:].hex(' ', 8).replace(' ', '` `')}` |")
print(f"| … tag 3 | `03` task id `{u64(1).hex()}` |")
e = roll(bytes(32), tag_1, task_place(task_1, 1))
effects_1 = e
show("effects digest", e)
batch_1 = header(1, network, 1, bytes(32), TIME, (1, 1, root_1), (1, 1, task_root_1), one, one, e)
show("hash of batch 1", batch_1)
certified = keccak(b"lockstep/certificate/v1", batch_1)
show("digest that its certificate signs", certified)
show("signature of N in it", sign(NODE, certified))
import base64
task_text = ('{"id":"0x' + task_1.hex() + '","projectID":7,"projectVersion":"0.1","deviceID":"0x' + address(D).hex()
             + '","payloads":["' + base64.b64encode(DATA).decode() + '"]}').encode()
show("digest of the task text", keccak(task_text))
show("task signature of N", sign(NODE, keccak(task_text)))

title("The blob of batch 1")
header_1 = (number(1, 1) + message(2, network) + number(4, 1) + message(5, bytes(32)) + number(6, TIME) + number(7, 1)
            + number(8, 1) + message(9, root_1) + number(10, 1) + number(11, 1) + message(12, task_root_1)
            + message(13, one) + message(14, one) + message(15, effects_1))
certificate_1 = (number(1, 1) + number(2, 1) + message(3, batch_1)
                 + message(4, number(1, 1) + message(2, sign(NODE, certified))))
members_1 = message(1, number(1, 1) + message(2, address(NODE)) + number(3, 1))
message_1 = (number(1, 1) + number(2, PROJECT) + message(3, VERSION) + message(4, DATA) + message(5, address(D))
             + message(6, sign(D, keccak(device_text))))
blob_task = (number(1, 1) + message(2, task_1) + number(3, PROJECT) + message(4, VERSION) + message(5, address(D))
             + message(7, sign(NODE, keccak(task_text)))
             + message(8, number(1, 1) + message(2, content) + number(3, 1) + message(5, message_1)))
blob = (b"lockstep/blob\n" + number(1, 1) + message(2, network) + message(4, header_1) + message(6, certificate_1)
        + message(7, members_1) + number(10, 1) + message(11, blob_task))
print(f"| its length | {len(blob)} bytes |")
show("keccak of the blob", keccak(blob))

title("With rules of the project")
ruled = ruled_hash(bytes(20), b"a", -1, b'{"n":1}', [b"tasks", b"dash"])
show("hash of what rules made of it", ruled)
show("id of a task that rules made", ruled_task_id(network, PROJECT, 1, [content], ruled))

other_leaf = message_leaf(2, unsigned, PROJECT, bytes(20), DATA)
title("With the unsigned message at sequence 2")
show("its leaf", other_leaf)
show("messages root", pair(root_1, other_leaf))

title("Further entries")
e = roll(e, rules_changed(2))
show("effects digest after rules 2", e)

newcomer = {"name": b"node-2", "key": compressed(SECOND), "incarnation": b"\x22" * 16,
            "p2p": b"/ip4/127.0.0.1/tcp/9101", "http": b"http://127.0.0.1:9001"}
founder = {"name": b"node-1", "key": compressed(NODE), "incarnation": b"\x11" * 16,
           "p2p": b"/ip4/127.0.0.1/tcp/9100", "http": b"http://127.0.0.1:9000"}
expires = TIME + 600_000


def proposal_digest(change):
    return keccak(b"lockstep/proposal/v1", network, u64(0), u64(1), one, u64(expires), change)


admit = (b"\x01" + counted(newcomer["name"]) + newcomer["key"] + newcomer["incarnation"] + counted(newcomer["p2p"])
         + counted(newcomer["http"]))
show("digest of the proposal to admit node-2", proposal_digest(admit))
show("approval of N", sign(NODE, proposal_digest(admit)))
for kind, what in ((2, "promote"), (3, "demote"), (4, "remove")):
    show(f"digest of the proposal to {what} node 2", proposal_digest(bytes([kind]) + u64(2)))

second_set = first_set + [(2, address(SECOND), 0)]
two = members_hash(second_set)
show("members hash after it", two)
known = [(1, founder, 1, 0), (2, newcomer, 2, 2)]
record = number(2, 1) + text(3, one) + number(4, expires) + message(5, member_record(newcomer))
pending = members_record(known, 0, (record, 2), (first_set, 2))
show("keccak of the members record", keccak(pending))
e = roll(e, members_changed(pending))
show("effects digest", e)
batch_2 = header(2, network, 2, batch_1, TIME + 1000, (2, 0, bytes(32)), (2, 0, bytes(32)), one, two, e)
show("hash of batch 2", batch_2)
# Its certificate ends the waiting for one, and raft's new configuration the change; only the latter is an effect.
done = members_record(known, 1, None, None)
e = roll(e, members_changed(done))
show("effects digest once the change is done", e)

again = message_id(content, 2)
task_2 = task_id(network, PROJECT, 2, [again])
e = roll(e, place(content, 1), place(again, 2), occurrence(content, 3, 2, 2, TIME + 20_000, 0), task_place(task_2, 2))
root_3 = message_leaf(2, again, PROJECT, address(D), DATA)
batch_3 = header(2, network, 3, batch_2, TIME + 20_000, (2, 1, root_3), (2, 1, task_leaf(2, task_2)), two, two, e)
show("effects digest after batch 3", e)
show("hash of batch 3", batch_3)

task_3 = task_id(network, PROJECT, 3, [unsigned])
e = roll(e, occurrence(unsigned, 4, 1, 3, TIME + 20_001, 0), task_place(task_3, 3))
root_4 = message_leaf(3, unsigned, PROJECT, bytes(20), DATA)
batch_4 = header(2, network, 4, batch_3, TIME + 20_001, (3, 1, root_4), (3, 1, task_leaf(3, task_3)), two, two, e)
show("hash of batch 4", batch_4)

e = roll(e, horizon(4, 3, 3), gap(b"tasks", 2, 2), progress(b"tasks", 2))
show("effects digest after batches below 4 were forgotten", e)

back = message_id(content, 1, 4)
task_4 = task_id(network, PROJECT, 4, [back])
e = roll(e, place(back, 4), occurrence(content, 5, 1, 4, TIME + 20_002, 4), task_place(task_4, 4))
root_5 = message_leaf(4, back, PROJECT, address(D), DATA)
batch_5 = header(2, network, 5, batch_4, TIME + 20_002, (4, 1, root_5), (4, 1, task_leaf(4, task_4)), two, two, e)
show("hash of batch 5", batch_5)
