// A libp2p peer set as those of W3bstream's apinode generation, for tests: TCP, Noise, yamux under the name
// /yamux/2.0.0, Kademlia as a server, gossipsub with strict signing.
//
// Usage: node peer.js CHAIN_ID    (CHAIN_ID is in the name of the Kademlia protocol)
// It writes one JSON object a line: first {"event":"listening"}, then what happens. It reads commands, one JSON object
// a line, and ends when its input does.

import { createInterface } from 'node:readline'
import { gossipsub } from '@chainsafe/libp2p-gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { noise } from '@chainsafe/libp2p-noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@chainsafe/libp2p-yamux'
import { createLibp2p } from 'libp2p'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'

// What the packages take for granted and Node has only since 19 and 22.
globalThis.CustomEvent ??= class CustomEvent extends Event {
  constructor (type, init) {
    super(type, init)
    this.detail = init?.detail ?? null
  }
}
Promise.withResolvers ??= function () {
  const made = {}
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
  return made
}

const TOPIC = 'w3bstream-task'
const MULTIPLEXER = '/yamux/2.0.0'
const GOSSIP = '/meshsub/1.1.0'
const RENDEZVOUS = 'w3bstream'
const RAW = 0x55
const QUERY_TIMEOUT_MS = 5_000

const chainId = process.argv[2] ?? '2'
const say = (event) => process.stdout.write(JSON.stringify(event) + '\n')

// Ordinary yamux under the only name that the reference offers.
const multiplexer = (components) => {
  const factory = yamux()(components)
  Object.defineProperty(factory, 'protocol', { value: MULTIPLEXER })
  return factory
}

const gossip = (components) => {
  const service = gossipsub({ globalSignaturePolicy: 'StrictSign', emitSelf: false })(components)
  service.multicodecs.splice(0, service.multicodecs.length, GOSSIP)
  return service
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [multiplexer],
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: `/iotex${chainId}/kad/1.0.0`,
      clientMode: false,
      // Tests run on the loopback address.
      peerInfoMapper: passthroughMapper
    }),
    pubsub: gossip
  }
})

node.services.pubsub.addEventListener('gossipsub:message', ({ detail }) => {
  const { msg } = detail
  say({
    event: 'message',
    topic: msg.topic,
    signed: msg.type === 'signed' && msg.signature.length > 0,
    from: msg.from?.toString() ?? null,
    sequence: msg.sequenceNumber?.toString() ?? null,
    data: new TextDecoder('utf-8', { fatal: true }).decode(msg.data)
  })
})
node.services.pubsub.addEventListener('subscription-change', ({ detail }) => {
  const subscribed = detail.subscriptions.some(({ topic, subscribe }) => topic === TOPIC && subscribe)
  say({ event: 'subscription', peer: detail.peerId.toString(), subscribed })
})

const connections = () => node.getConnections().map((connection) => ({
  peer: connection.remotePeer.toString(),
  multiplexer: connection.multiplexer ?? null,
  encryption: connection.encryption ?? null
}))

const providers = async () => {
  const key = CID.createV1(RAW, await sha256.digest(new TextEncoder().encode(RENDEZVOUS)))
  const found = new Map()
  try {
    for await (const peer of node.contentRouting.findProviders(key, { signal: AbortSignal.timeout(QUERY_TIMEOUT_MS) })) {
      found.set(peer.id.toString(), peer.multiaddrs.map(String))
    }
  } catch (error) {
    if (found.size === 0) {
      say({ event: 'query-failed', reason: String(error) })
    }
  }
  return Object.fromEntries(found)
}

const commands = {
  dial: ({ address }) => node.dial(multiaddr(address)),
  subscribe: () => node.services.pubsub.subscribe(TOPIC),
  publish: ({ data }) => node.services.pubsub.publish(TOPIC, new TextEncoder().encode(data)),
  connections: () => say({ event: 'connections', connections: connections() }),
  providers: async () => say({ event: 'providers', providers: await providers() })
}

say({ event: 'listening', peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  await commands[command.do](command)
}
process.exit(0)
