"use strict";
// A foreign OPC UA server for the tests (node-opcua), driven by JSON lines: what it can do stands in tests/foreign.py.
// One line in, one line out, in order: {"do": command, "server": number, …} → {"ok": result} or {"error": words}.
// One process holds several servers. It ends when its stdin ends.
globalThis.crypto ??= require("node:crypto").webcrypto; // node 18 has it, but not as a global
for (const level of ["log", "info", "warn", "debug"]) console[level] = console.error; // stdout is for answers alone

const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const { OPCUACertificateManager } = require("node-opcua-certificate-manager");
const { nodesets } = require("node-opcua-nodesets");
const { OPCUAServer } = require("node-opcua-server");
const { MessageSecurityMode, ServerState, UserTokenType } = require("node-opcua-types");
const { StatusCodes } = require("node-opcua-status-code");
const { Faults, setFloors } = require("./faults");
const { Plant, toStatus } = require("./plant");

const POLICIES = "http://opcfoundation.org/UA/SecurityPolicy#";
const SERVER_URI = "urn:foreign:server";
const [, , home] = process.argv;
const servers = new Map();
let count = 0;

// Certificates of others: accept all, or only those of the lists; the library then also checks dates, use and issuers.
async function certificates(name, { accept_all: all = true, trusted = [], issuers = [], revocations = [], key_from: keyFrom }) {
  const rootFolder = path.join(home, name);
  if (keyFrom && !fs.existsSync(rootFolder)) {
    const own = path.join(rootFolder, "own", "private");
    fs.mkdirSync(own, { recursive: true });
    fs.copyFileSync(keyFrom, path.join(own, "private_key.pem")); // a new key takes long, and is not used
  }
  const manager = new OPCUACertificateManager({ rootFolder, automaticallyAcceptUnknownCertificate: all, disableFileWatchers: true });
  await manager.initialize();
  for (const file of trusted) await manager.trustCertificate(der(file));
  for (const file of issuers) await manager.addIssuer(der(file), false, true);
  for (const file of revocations) await manager.addRevocationList(der(file), "issuers");
  if (all) manager.checkCertificate = (_, done) => (done ? done(null, StatusCodes.Good) : Promise.resolve(StatusCodes.Good));
  return manager;
}

// The first certificate of a file, or its revocation list.
function der(file) {
  const bytes = fs.readFileSync(file);
  const pem = /-----BEGIN (?:CERTIFICATE|X509 CRL)-----([^-]+)-----END/.exec(bytes.toString("latin1"));
  return pem ? Buffer.from(pem[1], "base64") : bytes;
}

let own; // the certificate and key of all servers that bring none, made once for the process
async function ownCertificate() {
  if (own) return own;
  const manager = await certificates("own", {});
  own = { certificate: path.join(home, "own.pem"), key: manager.privateKey };
  await manager.createSelfSignedCertificate({
    applicationUri: SERVER_URI, dns: ["localhost"], ip: ["127.0.0.1"], subject: "/CN=foreign", outputFile: own.certificate,
    startDate: new Date(Date.now() - 86400000), validity: 30,
  });
  return own;
}

function capabilities({ limits = {}, sessions_max: maxSessions = 50, subscriptions_max: maxSubscriptions = 100 }) {
  const { minSupportedSampleRate = 0, maxBrowseContinuationPoints = 0, ...operationLimits } = limits;
  return {
    maxSessions, maxSubscriptions, maxSubscriptionsPerSession: maxSubscriptions, minSupportedSampleRate,
    maxBrowseContinuationPoints, operationLimits,
  };
}

// What each endpoint offers; of the library's options for it some are not handed on (allowUnsecurePassword).
function offerTokens(server, { anonymous = true, users, user_certificates: byCertificate, plain_passwords: plain }) {
  const offered = new Set();
  if (anonymous) offered.add(UserTokenType.Anonymous);
  if (users) offered.add(UserTokenType.UserName);
  if (byCertificate) offered.add(UserTokenType.Certificate);
  for (const endpoint of server.endpoints[0].endpointDescriptions()) {
    endpoint.userIdentityTokens = endpoint.userIdentityTokens.filter(({ tokenType }) => offered.has(tokenType));
    if (!plain || endpoint.securityMode !== MessageSecurityMode.None) continue;
    const byPassword = ({ tokenType }) => tokenType === UserTokenType.UserName;
    for (const token of endpoint.userIdentityTokens.filter(byPassword)) token.securityPolicyUri = POLICIES + "None";
  }
}

// Where nothing is encrypted, a password still is: by a policy that has no endpoint of its own.
function policies({ policies: named = ["None"], modes = ["None"] }) {
  return modes.join() === "None" ? [...new Set([...named, "Basic256Sha256"])] : named;
}

async function open(number, settings, port) {
  const mine = await ownCertificate();
  const key = settings.key || mine.key;
  const { anonymous = true, users = {}, user_certificates: byCertificate } = settings;
  const manager = (kind, lists) => certificates(`${kind}-${number}`, { key_from: mine.key, ...lists });
  const server = new OPCUAServer({
    port, hostname: "127.0.0.1", maxConnectionsPerEndpoint: 1000,
    serverInfo: { applicationUri: settings.uri || SERVER_URI, applicationName: { text: "Foreign" } },
    securityPolicies: policies(settings).map((name) => POLICIES + name),
    securityModes: (settings.modes || ["None"]).map((name) => MessageSecurityMode[name]),
    allowAnonymous: anonymous,
    userManager: { isValidUser: (name, password) => Object.hasOwn(users, name) && users[name] === password },
    certificateFile: settings.certificate || mine.certificate, privateKeyFile: key,
    serverCertificateManager: await manager("peers", settings),
    userCertificateManager: await manager("users", { accept_all: false, trusted: byCertificate || [] }),
    nodeset_filename: [nodesets.standard, path.join(__dirname, "types.xml")],
    serverCapabilities: capabilities(settings),
    defaultSecureTokenLifetime: settings.token_lifetime_ms || 600000,
  });
  await server.initialize();
  offerTokens(server, settings);
  setFloors(settings);
  const plant = settings.plant_later ? null : new Plant(server.engine.addressSpace, settings);
  const faults = new Faults(server, settings);
  await server.start();
  faults.watchSockets();
  const one = { number, settings, server, plant, faults, ramps: new Map(), port: server.endpoints[0].port };
  servers.set(number, one);
  return one;
}

async function shut(one, grace) {
  for (const timer of one.ramps.values()) clearInterval(timer.clock);
  one.ramps.clear();
  one.faults.mute(false);
  if (!grace) one.faults.drop(); // as a power cut: nobody is told
  await one.faults.listen(true); // the library closes only what listens
  const closed = await within(5000, one.server.shutdown(0)); // it waits for ever for a channel that it was just refusing
  if (!closed) await within(1000, one.faults.listen(false));
  servers.delete(one.number);
}

// Whether it was done in time; what goes on is left to itself.
const within = (ms, work) =>
  Promise.race([Promise.resolve(work).then(() => true, () => true), new Promise((resolve) => setTimeout(resolve, ms, false))]);

const told = (one) => ({ server: one.number, port: one.port, index: one.plant ? one.plant.ns.index : -1 });

// A number that goes up by one: of all nodes at once, `start`, `start + 1` … one each period.
function ramp(one, { nodes, period_ms: period, start = 0, count: last = null }) {
  const number = (count += 1);
  const timer = { value: start, made: 0 };
  const names = one.plant.expand(nodes);
  for (const name of names) one.plant.node(name); // those that are not there are told now
  const beat = () => {
    if (last !== null && timer.made >= last) return clearInterval(timer.clock);
    const there = names.filter((node) => one.plant.kinds.has(node)); // some may have been deleted since
    for (const node of there) one.plant.set({ node, value: timer.value });
    timer.value += 1;
    timer.made += 1;
    return undefined;
  };
  timer.clock = setInterval(beat, period);
  one.ramps.set(number, timer);
  return number;
}

const COMMANDS = {
  set: (one, order) => void order.values.forEach((each) => one.plant.set(each)),
  ramp,
  ramp_end: (one, { ramp: number }) => {
    const timer = one.ramps.get(number);
    clearInterval(timer.clock);
    return timer.made;
  },
  add: (one, { node, kind, value }) => void one.plant.add(node, kind, value),
  remove: (one, { node, told: loud }) => one.plant.remove(node, loud),
  restart: async (one, { away_s: away = 0, settings = {}, grace = false }) => {
    await shut(one, grace);
    await new Promise((resolve) => setTimeout(resolve, away * 1000));
    return told(await open(one.number, { ...one.settings, ...settings }, one.port));
  },
  load_plant: (one) => {
    one.plant = new Plant(one.server.engine.addressSpace, one.settings);
    return told(one);
  },
  state: (one, { state }) => one.server.setServerState(ServerState[state]),
  end: (one, { grace = false }) => shut(one, grace),
  listen: (one, { on }) => one.faults.listen(on),
  drop: (one) => one.faults.drop(),
  mute: (one, { on }) => one.faults.mute(on),
  silent: (one, { on }) => void (one.faults.silent = on),
  skip: (one, { times, lose = false }) => void Object.assign(one.faults, { skips: times, lose }),
  republish: (one, { how }) => void (one.faults.republishing = how),
  refuse: (one, { service, status, times }) => void one.faults.refusals.set(service, { status, times, checked: toStatus(status) }),
  delay: (one, { service, ms }) => void one.faults.delays.set(service, ms),
  refuse_items: (one, { nodes, status }) => {
    toStatus(status);
    one.faults.refusedItems = new Map(nodes.map((node) => [one.plant.node(node).nodeId.toString(), status]));
  },
  close_sessions: (one, { keep = false }) => one.faults.closeSessions(keep),
  deafen: (one, { nodes }) => one.faults.deafen(nodes.map((node) => one.plant.node(node).nodeId.toString())),
  end_subscriptions: (one, { told: loud }) => one.faults.endSubscriptions(loud),
  enforce: (one, { limit, value }) => void (one.server.engine.serverCapabilities.operationLimits[limit] = value),
  statistics: (one) => one.faults.statistics(),
};

async function obey(order) {
  if (order.do === "start") return told(await open((count += 1), order.settings, order.settings.port || 0));
  if (order.do === "crash") {
    process.nextTick(() => {
      throw new Error("it was told to crash");
    });
    return new Promise(() => {});
  }
  const one = servers.get(order.server);
  if (!one) throw new Error(`there is no server ${order.server}`);
  const command = COMMANDS[order.do];
  if (!command) throw new Error(`there is no command ${order.do}`);
  return command(one, order);
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
      answer = { ok: (await obey(JSON.parse(line))) ?? null };
    } catch (error) {
      answer = { error: error.stack || String(error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
  process.exit(0);
}

main();
