"use strict";
// The faults: what node-opcua has no switch for is an override of a method, of one server where that is possible.
const { MonitoredItem, Subscription } = require("node-opcua-server");
const { MonitoredItemCreateResult, RepublishResponse, ServiceFault } = require("node-opcua-types");
const { toStatus } = require("./plant");

function fault(channel, message, status) {
  const response = new ServiceFault({ responseHeader: { serviceResult: toStatus(status) } });
  channel.send_response("MSG", response, message, () => {});
}

// A publish engine knows the faults of its server; a subscription without one (an orphan) plays none.
const faultsOf = (subscription) => subscription.publishEngine && subscription.publishEngine.$faults;

// Of all servers of the process, once: a subscription's timer holds its own _tick, so the prototype is the place.
const { _tick: tick, process_subscription: publish, preCreateMonitoredItem: create } = Subscription.prototype;
Subscription.prototype._tick = function () {
  if (!(faultsOf(this) || {}).silent) tick.call(this);
};
Subscription.prototype.process_subscription = function () {
  if (!(faultsOf(this) || {}).silent) publish.call(this);
};
Subscription.prototype.preCreateMonitoredItem = function (space, stamps, request) {
  const refused = ((faultsOf(this) || {}).refusedItems || new Map()).get(request.itemToMonitor.nodeId.toString());
  if (!refused) return create.call(this, space, stamps, request);
  return { createResult: new MonitoredItemCreateResult({ statusCode: toStatus(refused) }), monitoredItemCreateRequest: request };
};

const SHORTEST = {
  publishing_min_ms: [Subscription, "minimumPublishingInterval", Subscription.minimumPublishingInterval],
  lifetime_min_ms: [Subscription, "minimumLifetimeDuration", Subscription.minimumLifetimeDuration],
  sampling_min_ms: [MonitoredItem, "minimumSamplingInterval", MonitoredItem.minimumSamplingInterval],
};

// The floors under intervals are statics of the library: the server that was started last decides for all.
function setFloors(settings) {
  for (const [name, [owner, key, usual]] of Object.entries(SHORTEST)) owner[key] = settings[name] ?? usual;
}

class Faults {
  constructor(server, settings) {
    this.server = server;
    this.refusals = new Map(); // service → {status, times}
    this.delays = new Map(); // service → milliseconds
    this.refusedItems = new Map(); // NodeId → status
    this.requests = {}; // service → how many came
    this.publishLimit = settings.publish_requests_max || 0;
    this.referencesMax = settings.references_max || 0;
    this.silent = false;
    this.muted = false;
    this.skips = 0;
    this.skipped = 0;
    this.lose = false;
    this.republishing = "normal";
    this.waiting = []; // sockets that connected while the server was mute
    this.interceptRequests();
    this.interceptSessions();
  }

  // Every service request comes through on_request, but Hello, OpenSecureChannel and CloseSecureChannel.
  interceptRequests() {
    const { server } = this;
    const pass = server.on_request.bind(server);
    server.on_request = (message, channel) => {
      const service = message.request.schema.name.replace(/Request$/, "");
      this.requests[service] = (this.requests[service] || 0) + 1;
      this.narrow(message.request);
      const refusal = this.refusals.get(service);
      if (refusal && refusal.times !== 0) {
        refusal.times -= 1;
        return fault(channel, message, refusal.status);
      }
      const go = () => (service === "Republish" ? this.republish(pass, message, channel) : pass(message, channel));
      const delay = this.delays.get(service);
      return delay ? setTimeout(go, delay) : go();
    };
  }

  // A Browse that asks for all references gets so many, and a continuation point: the library has no such limit.
  narrow(request) {
    if (request.schema.name !== "BrowseRequest" || !this.referencesMax) return;
    const wish = request.requestedMaxReferencesPerNode || this.referencesMax;
    request.requestedMaxReferencesPerNode = Math.min(wish, this.referencesMax);
  }

  republish(pass, message, channel) {
    if (this.republishing === "refused") return fault(channel, message, "BadMessageNotAvailable");
    if (this.republishing !== "empty") return pass(message, channel);
    const { retransmitSequenceNumber: sequenceNumber } = message.request;
    return channel.send_response("MSG", new RepublishResponse({ notificationMessage: { sequenceNumber } }), message, () => {});
  }

  // A session's publish engine is where notifications leave: it is told of us, and may skip some.
  interceptSessions() {
    const { engine } = this.server;
    const createSession = engine.createSession.bind(engine);
    engine.createSession = (options) => {
      const session = createSession(options);
      const publishing = session.publishEngine;
      publishing.$faults = this;
      if (this.publishLimit) publishing.maxPublishRequestInQueue = this.publishLimit;
      const send = publishing._send_response.bind(publishing);
      publishing._send_response = (subscription, response) => {
        const isData = (response.notificationMessage.notificationData || []).length > 0;
        if (!isData || this.skips === 0) return send(subscription, response);
        this.skips -= 1;
        this.skipped += 1; // its sequence number is used up, the Publish request is not
        if (this.lose) subscription._sent_notification_messages.pop();
        return undefined;
      };
      return session;
    };
  }

  // Connections that are there stall as on a dead line: nothing is read, what is written waits. New ones are accepted only.
  mute(on) {
    if (on === this.muted) return;
    this.muted = on;
    for (const socket of this.sockets) {
      if (on) {
        socket.pause();
        socket.cork();
      } else {
        socket.uncork();
        socket.resume();
      }
    }
    if (!on) for (const socket of this.waiting.splice(0)) if (!socket.destroyed) this.endpoint._on_client_connection(socket);
  }

  // After the start only: the endpoint makes its listener then.
  watchSockets() {
    this.sockets = new Set();
    this.accepted = 0;
    [this.endpoint] = this.server.endpoints;
    this.listener = this.endpoint._server;
    this.listener.removeAllListeners("connection");
    this.listener.on("connection", (socket) => {
      this.accepted += 1;
      this.sockets.add(socket);
      socket.on("close", () => this.sockets.delete(socket));
      socket.on("error", () => {});
      if (this.muted) this.waiting.push(socket);
      else this.endpoint._on_client_connection(socket);
    });
  }

  drop() {
    const count = this.sockets.size;
    for (const socket of this.sockets) socket.resetAndDestroy ? socket.resetAndDestroy() : socket.destroy();
    this.waiting = [];
    return count;
  }

  listen(on) {
    if (on === this.listener.listening) return Promise.resolve();
    if (!on) {
      this.listener.close(); // those that are connected stay
      return Promise.resolve();
    }
    const { port, host } = this.endpoint;
    return new Promise((resolve, reject) => {
      this.listener.once("error", reject);
      this.listener.listen({ port, host }, () => {
        this.listener.removeListener("error", reject);
        resolve();
      });
    });
  }

  sessions() {
    return Object.values(this.server.engine._sessions);
  }

  closeSessions(keep) {
    const sessions = this.sessions();
    for (const session of sessions) this.server.engine.closeSession(session.authenticationToken, !keep, "Terminated");
    return sessions.length;
  }

  // The items of these nodes that are there take no value any more; those that are created later do.
  deafen(ids) {
    const all = this.sessions().flatMap((session) => session.publishEngine.subscriptions);
    const items = all.flatMap((subscription) => [...subscription.monitoredItems.values()]);
    const deaf = items.filter((item) => ids.includes(item.itemToMonitor.nodeId.toString()));
    for (const item of deaf) item.recordValue = item._enqueue_value = () => {};
    return deaf.length;
  }

  // told: with the StatusChangeNotification BadTimeout of a subscription whose lifetime ended; else without a word.
  endSubscriptions(told) {
    let count = 0;
    for (const session of this.sessions()) {
      for (const subscription of session.publishEngine.subscriptions) {
        count += 1;
        if (told) {
          subscription._life_time_counter = subscription.lifeTimeCount;
          tick.call(subscription);
        } else subscription.terminate();
      }
    }
    return count;
  }

  statistics() {
    return {
      connections: this.sockets.size,
      accepted: this.accepted,
      requests: this.requests,
      skipped: this.skipped,
      cumulated_sessions: this.server.engine.cumulatedSessionCount,
      rejected_sessions: this.server.engine.rejectedSessionCount,
      sessions: this.sessions().map((session) => ({
        name: session.sessionName,
        status: session.status,
        timeout_ms: session.sessionTimeout,
        publish_requests: session.publishEngine.pendingPublishRequestCount,
        subscriptions: session.publishEngine.subscriptions.map(toldSubscription),
      })),
    };
  }
}

function toldSubscription(subscription) {
  return {
    id: subscription.id,
    publishing_ms: subscription.publishingInterval,
    keep_alive_count: subscription.maxKeepAliveCount,
    lifetime_count: subscription.lifeTimeCount,
    priority: subscription.priority,
    enabled: subscription.publishingEnabled,
    notifications_max: subscription.maxNotificationsPerPublish,
    unacknowledged: subscription.getAvailableSequenceNumbers().length,
    items: [...subscription.monitoredItems.values()].map((item) => ({
      id: item.monitoredItemId,
      node: item.itemToMonitor.nodeId.toString().replace(/^ns=\d+;(s=)?/, ""), // as the plant calls it
      sampling_ms: item.samplingInterval,
      queue: item.queueSize,
      discard_oldest: item.discardOldest,
      mode: item.monitoringMode, // 0 disabled, 1 sampling, 2 reporting
      trigger: item.filter && item.filter.trigger !== undefined ? item.filter.trigger : null, // 0 status, 1 value, 2 stamp
      deadband: item.filter && item.filter.deadbandType ? { type: item.filter.deadbandType, value: item.filter.deadbandValue } : null,
    })),
  };
}

module.exports = { Faults, setFloors };
