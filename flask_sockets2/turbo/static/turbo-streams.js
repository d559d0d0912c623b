// The browser's half of Turbo: one connection for all streams of a page, which comes back by
// itself and misses nothing.
//
// What a page shows, it shows as of a position in the log of each of its streams. The server
// writes that into the page, here it moves on with each message that was applied, and a new
// connection asks for what came after it. So nothing is lost between rendering and connecting, nor
// while the connection was away, nor in a page that Turbo takes from its cache.
//
// The positions live in the body, whose clone is what Turbo caches: an element
// <turbo-stream-from name="…" position="…"> has its own; what a <meta name="turbo-stream-from"
// content="…" data-position="…"> says is kept on <body>, since a head is not always that of the
// body: a frame that changes the URL brings its page's head. "-" stands for a page that is stale,
// "" for "from now on".

const script = [...document.scripts].find((each) => each.src === import.meta.url);
const endpoint = script?.dataset.url ?? "/turbo-stream";
const debug = script?.dataset.debug !== undefined;

const TAG = "turbo-stream-from";
const POSITIONS = "data-turbo-stream-positions"; // on <body>: by the names of the metas, as JSON
const STATE = "data-turbo-stream-state"; // on <html>: connecting, connected, offline or refused
const STALE = "-";

// In milliseconds.
const FIRST_DELAY = 500; // before the second attempt; doubles with each
const LONGEST_DELAY = 15_000;
const LIBRARY_DELAY = 1000; // until turbo.js is looked for again
const STABLE = 5000; // after having been open for so long, all is well
const CONNECT_TIMEOUT = 10_000;
const SILENCE = 45_000; // without even a heartbeat: an event stream is dead
const UPGRADE_DELAY = 180_000; // from an event stream to a WebSocket
const SOONER_UPGRADE_DELAY = 10_000; // where WebSockets have worked before
const REFRESH_PAUSE = 5000; // between two refreshes; doubles as long as they do not help
const LONGEST_REFRESH_PAUSE = 300_000;
const RELOAD_PAUSE = 60_000; // between two reloads because of a refusal
const TICK = 15_000; // timers of hidden tabs may be held back for a minute
const ASLEEP = 100_000; // without a tick: the device slept, or the tab was frozen

const REFUSALS = new Set([400, 401, 403, 404, 410, 413]); // this page would try again in vain
const EXPIRED = 410;
const RELOADED = "turbo-stream-reloaded"; // in sessionStorage, with the path of the page: when
const LONGEST_QUERY = 3072; // servers commonly take request lines of 4 KiB
const MOST_NAMES = 10_000; // whose channels are remembered

// -- positions ----------------------------------------------------------------------------------

/** Whether who has seen everything up to `seen` has seen what is at `position`. */
function includes(seen, position) {
  const [epoch, offset] = split(seen);
  const [otherEpoch, otherOffset] = split(position);
  return epoch !== "" && epoch === otherEpoch && offset >= otherOffset;
}

function split(position) {
  const at = position.lastIndexOf("-");
  return [position.slice(0, Math.max(at, 0)), Number(position.slice(at + 1))];
}

/** The position that misses nothing of what any of the places lacks. */
function oldest(places) {
  const positions = places.map((place) => place.position).filter((position) => position !== "");
  if (positions.length === 0) return "";
  return positions.reduce((one, other) => {
    if (includes(one, other)) return other;
    return includes(other, one) ? one : STALE; // of different logs
  });
}

// -- what the page is subscribed to -------------------------------------------------------------

const channels = new Map(); // by signed name: what the server called it, or what the name says

/** The channel of a signed name. Each page has its names signed anew; the channels stay. */
function channelOf(name) {
  if (!channels.has(name)) {
    if (channels.size >= MOST_NAMES) channels.clear(); // after many visits
    channels.set(name, readable(name) ?? name);
  }
  return channels.get(name);
}

// itsdangerous: JSON in base64url, a dot, the time, a dot, the signature; a dot in front where it
// is compressed. Only to compare: what it may subscribe to is for the server to say.
function readable(name) {
  try {
    const binary = atob(name.split(".")[0].replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    const value = JSON.parse(new TextDecoder().decode(bytes));
    return typeof value === "string" ? value : undefined;
  } catch {
    return undefined;
  }
}

class StreamElement extends HTMLElement {
  static observedAttributes = ["name", "position"];

  get name() {
    return this.getAttribute("name") ?? "";
  }

  rename(value) {
    this.setAttribute("name", value);
  }

  get position() {
    return this.getAttribute("position") ?? "";
  }

  set position(value) {
    this.setAttribute("position", value);
  }

  connectedCallback() {
    schedule();
  }

  disconnectedCallback() {
    schedule();
  }

  attributeChangedCallback() {
    schedule();
  }
}

/** A stream of a meta. */
class Kept {
  constructor(name) {
    this.name = name;
  }

  rename(value) {
    const { [this.name]: position, ...others } = kept();
    keep({ ...others, [value]: position });
    this.name = value;
  }

  get position() {
    return kept()[this.name];
  }

  set position(value) {
    keep({ ...kept(), [this.name]: value });
  }
}

function kept() {
  const text = document.body.getAttribute(POSITIONS);
  if (text !== null) return JSON.parse(text);
  // A new body, or one that was morphed: it belongs to the head that is there now.
  const pairs = metas(document).map(({ content, dataset }) => [content, dataset.position ?? ""]);
  return keep(Object.fromEntries(pairs));
}

function keep(positions) {
  document.body.setAttribute(POSITIONS, JSON.stringify(positions));
  return positions;
}

const elements = document.getElementsByTagName(TAG); // live
// Wherever {{ turbo() }} stands.
const metas = (page) => [...page.querySelectorAll(`meta[name="${TAG}"]`)];

/** The page's streams by channel: { name, places }, where each place has a position. */
function streamsOfPage() {
  const streams = new Map();
  for (const place of [...Object.keys(kept()).map((each) => new Kept(each)), ...elements]) {
    if (place.name === "") continue;
    const channel = channelOf(place.name);
    const places = streams.get(channel)?.places ?? [];
    streams.set(channel, { name: place.name, places: [...places, place] });
  }
  return streams;
}

// -- one connection -----------------------------------------------------------------------------

class Connection {
  closed = false;
  opened = false;
  upgrade = false; // an attempt that may fail: there is a connection already
  expired = false; // refused, as its names are too old

  constructor(streams) {
    this.names = [];
    this.streams = new Map();
    this.further = []; // names and positions that do not fit into the URL, and follow it
    let query = "";
    for (const [channel, { name, places }] of streams) {
      const position = oldest(places);
      this.names.push(name);
      // seen: up to where everything has come; gap: whether a gap has been told, or will be
      this.streams.set(channel, { seen: position, gap: position === STALE, subscribed: false });
      const pair = new URLSearchParams({ s: name, at: position });
      const longer = query === "" ? `${pair}` : `${query}&${pair}`;
      if (query === "" || (this.further.length === 0 && longer.length <= LONGEST_QUERY)) {
        query = longer;
      } else {
        this.further.push([name, position]);
      }
    }
    if (this.further.length > 0) query += `&more=${this.further.length}`;
    this.url = new URL(endpoint, location.href);
    this.url.search = query;
  }

  /** What follows the URL, undefined for nothing. */
  get body() {
    return this.further.length > 0 ? JSON.stringify({ streams: this.further }) : undefined;
  }

  /** Whether it brings everything to a page with these streams, and nothing else. */
  fits(streams) {
    return (
      streams.size === this.streams.size &&
      [...streams].every(
        ([channel, { places }]) =>
          this.streams.has(channel) && !isBehind(oldest(places), this.streams.get(channel)),
      )
    );
  }

  overWebSocket() {
    this.transport = "websocket";
    const url = new URL(this.url);
    url.protocol = url.protocol.replace("http", "ws"); // https: becomes wss:
    let socket;
    const onClose = (code) => {
      this.shut?.();
      this.expired = code === 4000 + EXPIRED;
      // 1008 before anything was said may be a proxy's, which knows nothing of the page.
      const refused = (code >= 4400 && code < 4500) || (code === 1008 && this.opened);
      if (this.opened || this.upgrade || refused) {
        this.end(refused);
      } else {
        this.overEventStream(); // which has a status, and works where WebSockets are blocked
      }
    };
    try {
      socket = new WebSocket(url);
    } catch {
      onClose(1006); // Safari, where the page's policy forbids it
      return;
    }
    const timer = setTimeout(() => onClose(1006), CONNECT_TIMEOUT);
    // No close follows in Chromium, where the page's policy forbids it.
    socket.onerror = () => onClose(1006);
    socket.onopen = () => {
      socket.onerror = null;
      if (this.body !== undefined) socket.send(this.body);
    };
    socket.onmessage = (event) => {
      if (this.opened) {
        this.receive(event.data);
      } else if (JSON.parse(event.data).event === "unsupported") {
        onClose(1006); // the server can have such connections, and nothing sent over them
      } else {
        // Not before: there are proxies that let the handshake pass, and nothing else.
        clearTimeout(timer);
        this.open();
        this.receive(event.data);
      }
    };
    socket.onclose = (event) => onClose(event.code);
    this.shut = () => {
      clearTimeout(timer);
      socket.onopen = socket.onmessage = socket.onerror = socket.onclose = null;
      socket.close();
    };
  }

  // Not an EventSource, which tells no status and comes back to the position it began with.
  async overEventStream() {
    this.transport = "event-stream";
    const controller = new AbortController();
    this.shut = () => controller.abort();
    let timer;
    const expectWithin = (delay) => {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(), delay);
    };
    let refused = false;
    let wait = 0;
    try {
      expectWithin(CONNECT_TIMEOUT);
      const headers = { Accept: "text/event-stream" };
      if (this.body !== undefined) headers["Content-Type"] = "application/json";
      const response = await fetch(this.url, {
        method: this.body === undefined ? "GET" : "POST",
        headers,
        body: this.body,
        cache: "no-store",
        redirect: "manual", // to a login page, most likely
        signal: controller.signal,
      });
      refused = REFUSALS.has(response.status) || response.type === "opaqueredirect";
      this.expired = response.status === EXPIRED;
      wait = 1000 * (Number(response.headers.get("Retry-After")) || 0);
      const type = response.headers.get("Content-Type") ?? "";
      if (response.ok && type.startsWith("text/event-stream")) {
        this.open();
        await this.read(response.body, () => expectWithin(SILENCE));
      }
    } catch {
      // The network, or nothing in time.
    }
    clearTimeout(timer);
    controller.abort();
    this.end(refused, wait);
  }

  async read(body, onSomething) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let data = [];
    for (;;) {
      onSomething();
      const { value, done } = await reader.read();
      if (done || this.closed) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(5).trimStart());
        } else if (line === "" && data.length > 0) {
          this.receive(data.join("\n"));
          data = [];
        }
      }
    }
  }

  open() {
    if (this.closed) return;
    this.opened = true;
    onOpen(this);
  }

  receive(text) {
    if (!this.closed) onEnvelope(this, JSON.parse(text));
  }

  end(refused, wait = 0) {
    if (this.closed) return;
    this.closed = true;
    onEnd(this, refused, wait);
  }

  close() {
    this.closed = true;
    this.shut?.();
  }
}

/** Whether a page at a position lacks what the connection will not bring any more. */
function isBehind(position, stream) {
  if (position === "" || stream.seen === "") return false;
  return position === STALE ? !stream.gap : !includes(position, stream.seen);
}

// -- keeping it ---------------------------------------------------------------------------------

let current; // the connection that is open
let attempt; // the one that is being opened, and then takes its place
let lost; // the one that failed last
let refused = ""; // the names that the server does not want to hear any more
let renewed = false; // whether they were, since the page was connected
let delay = FIRST_DELAY;
let retryTimer;
let stableTimer;
let upgradeTimer;
let webSocketsWork = false;
let webSocketsBlocked = false;
let scheduled = false;
let complained = false; // of turbo.js

/** Look at the page's streams soon: many changes of the document are one. */
function schedule() {
  if (scheduled) return;
  scheduled = true;
  queueMicrotask(() => {
    scheduled = false;
    update();
  });
}

function update() {
  markElements();
  if (document.documentElement.hasAttribute("data-turbo-preview")) return;
  const streams = streamsOfPage();
  if (streams.size === 0) {
    stop();
    document.documentElement.removeAttribute(STATE);
  } else if (current?.fits(streams)) {
    if (attempt && !attempt.upgrade) abandonAttempt();
    beginAt(current, streams);
  } else if (!attempt?.fits(streams) && !(retryTimer && lost?.fits(streams))) {
    connect();
  }
}

function connect(upgrade = false) {
  abandonAttempt();
  const streams = streamsOfPage();
  if (document.hidden || streams.size === 0) return; // it will be visible, it will have some
  if (!turboIsHere()) return;
  const wanted = new Connection(streams);
  if (wanted.names.join(" ") === refused) {
    setState("refused");
    return;
  }
  attempt = wanted;
  attempt.upgrade = upgrade;
  if (!current && state() !== "offline") setState("connecting");
  if (webSocketsBlocked && !upgrade) {
    attempt.overEventStream();
  } else {
    attempt.overWebSocket();
  }
}

/** Whether there is anything to show a stream with; a page may load it later than this. */
function turboIsHere() {
  if (window.Turbo?.renderStreamMessage) return true;
  setState("offline");
  retryTimer = setTimeout(tryNow, LIBRARY_DELAY);
  if (!complained) console.error("turbo.js is not loaded, so no stream can be shown");
  complained = true;
  return false;
}

function abandonAttempt() {
  clearTimeout(retryTimer);
  retryTimer = undefined;
  attempt?.close();
  attempt = undefined;
}

function stop() {
  abandonAttempt();
  clearTimeout(stableTimer);
  clearTimeout(upgradeTimer);
  current?.close();
  current = lost = undefined;
  markElements();
}

function onOpen(connection) {
  const previous = current;
  current = connection;
  attempt = undefined;
  previous?.close();
  clearTimeout(upgradeTimer);
  clearTimeout(stableTimer);
  stableTimer = setTimeout(() => {
    delay = FIRST_DELAY;
    storage("removeItem", reloaded());
  }, STABLE);
  webSocketsBlocked = connection.transport !== "websocket";
  if (webSocketsBlocked) {
    upgradeLater();
  } else {
    webSocketsWork = true;
  }
  if (document.hidden) letGo();
}

/** Leave an event stream to other tabs: browsers open six connections to a server, for all. */
function letGo() {
  if (current?.transport === "event-stream") stop();
}

function upgradeLater() {
  const pause = webSocketsWork ? SOONER_UPGRADE_DELAY : UPGRADE_DELAY;
  upgradeTimer = setTimeout(() => (attempt ? upgradeLater() : connect(true)), pause);
}

function onEnd(connection, isRefused, wait) {
  if (connection === current) {
    current = undefined;
    clearTimeout(stableTimer);
    clearTimeout(upgradeTimer);
    markElements();
    tell("disconnected", { transport: connection.transport });
  } else {
    attempt = undefined;
  }
  if (connection.upgrade && current) {
    webSocketsWork = false;
    upgradeLater();
  } else if (connection.expired && !renewed) {
    renew(connection);
  } else if (isRefused) {
    refuse(connection);
  } else {
    retryLater(connection, wait);
  }
}

function retryLater(connection, wait) {
  lost = connection;
  // At first it is a hiccup that nobody need be told of.
  if (!current) setState(connection.opened && navigator.onLine ? "connecting" : "offline");
  const jittered = delay * (0.5 + Math.random() / 2);
  delay = Math.min(delay * 2, LONGEST_DELAY);
  if (attempt) return; // for another page
  clearTimeout(retryTimer);
  retryTimer = setTimeout(connect, Math.max(jittered, wait));
}

/** Take the names of the same page as the server makes it now; what it shows stays as it is. */
async function renew(connection) {
  attempt = connection;
  const controller = new AbortController();
  connection.shut = () => controller.abort();
  const timer = setTimeout(connection.shut, CONNECT_TIMEOUT);
  let response, html;
  try {
    response = await fetch(location.href, {
      headers: { Accept: "text/html" },
      cache: "no-store",
      signal: controller.signal,
    });
    html = await response.text();
  } catch {
    // The network, or nothing in time.
  }
  clearTimeout(timer);
  if (attempt !== connection) return; // there is another page by now
  attempt = undefined;
  if (html === undefined || response.status >= 500) {
    retryLater(connection, 0);
    return;
  }
  renewed = true;
  const names = namesIn(html);
  for (const [channel, { places }] of streamsOfPage()) {
    for (const place of places) place.rename(names.get(channel) ?? place.name);
  }
  connect(); // in vain where it was another page, as that of a login
}

/** The names of another page, by channel. */
function namesIn(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const found = metas(page).map((each) => each.content);
  for (const each of page.querySelectorAll(TAG)) found.push(each.getAttribute("name") ?? "");
  return new Map(found.map((name) => [channelOf(name), name]));
}

/** The session has ended, or the like: a new page may help, once. */
function refuse(connection) {
  stop();
  refused = connection.names.join(" ");
  setState("refused");
  const last = Number(storage("getItem", reloaded()));
  if (Math.abs(Date.now() - last) < RELOAD_PAUSE) return;
  storage("setItem", reloaded(), Date.now());
  // Where nothing can be remembered, this would go on for ever.
  if (!storage("getItem", reloaded())) return;
  if (tell("before-reload", undefined, true)) {
    location.reload();
  } else {
    storage("removeItem", reloaded());
  }
}

// Of each page: the refusal of one must not keep another one as it is.
const reloaded = () => `${RELOADED} ${location.pathname}`;

function storage(method, ...args) {
  try {
    return sessionStorage[method](...args);
  } catch {
    return null; // the browser keeps nothing for this site
  }
}

// -- what comes ---------------------------------------------------------------------------------

function onEnvelope(connection, { event, channel, channels: names, position, data }) {
  if (event === "streams") {
    const streams = [...connection.streams.values()];
    connection.streams = new Map(names.map((name, index) => [name, streams[index]]));
    connection.names.forEach((name, index) => channels.set(name, names[index]));
    return;
  }
  const stream = connection.streams.get(channel);
  if (stream === undefined) return;
  const places = () => streamsOfPage().get(channel)?.places ?? [];
  if (event === "subscribed") {
    onSubscribed(connection, stream, position);
  } else if (event === "gap") {
    onGap(stream, places(), channel, position);
  } else if (event === undefined && typeof data === "string") {
    onMessage(stream, places, position, data);
  }
}

function onSubscribed(connection, stream, position) {
  stream.subscribed = true;
  if (stream.seen === "") stream.seen = position;
  for (const each of connection.streams.values()) {
    if (!each.subscribed) return; // there may be hundreds: the page is looked at once
  }
  renewed = false;
  beginAt(connection, streamsOfPage());
  markElements();
  setState("connected");
  tell("connected", { transport: connection.transport });
  if (isStale()) refreshSoon();
  schedule();
}

/** Where a page has no position it has this one from now on. */
function beginAt(connection, streams) {
  for (const [channel, { places }] of streams) {
    const seen = connection.streams.get(channel)?.seen ?? "";
    for (const place of places) {
      if (place.position === "" && seen !== "") place.position = seen;
    }
  }
}

function onMessage(stream, places, position, data) {
  const before = places();
  const isLate = before.length > 0 && isBehind(oldest(before), stream);
  if (position !== undefined) stream.seen = position;
  if (isLate) {
    schedule(); // the page gets it, and what it lacks, from a connection of its own
    return;
  }
  const isNew = (place) => position === undefined || !includes(place.position, position);
  if (!before.some(isNew)) return;
  if (!isOwn(data)) render(data);
  if (position === undefined) return;
  for (const place of places()) {
    if (isNew(place) && place.position !== STALE) place.position = position;
  }
}

/** Let Turbo apply a message, at once. */
function render(data) {
  // Turbo would wait for the next frame, in which there may be another page, or a copy of this one
  // for the cache. The listener is the last one: others have said by now what they want.
  const now = async (event) => {
    if (event.defaultPrevented) return;
    event.preventDefault();
    try {
      await event.detail.render(event.target);
    } catch (error) {
      console.error(error);
    }
  };
  window.addEventListener("turbo:before-stream-render", now);
  try {
    window.Turbo.renderStreamMessage(data);
  } catch (error) {
    console.error(error);
  } finally {
    window.removeEventListener("turbo:before-stream-render", now);
  }
}

// -- what this page has caused itself -----------------------------------------------------------

const SENDER = /^\s*<turbo-stream\b[^>]*\sdata-sender="([^"]*)"/;
const LONGEST_MEMORY = 100;
const own = new Set(); // ids of the requests of this page
let foreign = new Set(); // those of pages that were here before; Turbo keeps 20 of all

function rememberRequests() {
  for (const id of window.Turbo?.session?.recentRequests ?? []) {
    if (!foreign.has(id)) own.add(id);
  }
  for (const id of own) {
    if (own.size <= LONGEST_MEMORY) break;
    own.delete(id);
  }
}

function forgetRequests() {
  foreign = new Set(window.Turbo?.session?.recentRequests ?? []);
  own.clear();
}

function isOwn(data) {
  const sender = SENDER.exec(data)?.[1];
  if (sender === undefined) return false;
  rememberRequests();
  return own.has(sender);
}

// -- gaps ---------------------------------------------------------------------------------------

let refreshTimer;
let refreshPause = REFRESH_PAUSE;
let refreshed = -Infinity;

function onGap(stream, places, channel, position) {
  stream.gap = true;
  stream.seen = position;
  // A page that came in the meantime lacks nothing.
  if (places.every((place) => includes(place.position, position))) return;
  for (const place of places) place.position = STALE;
  tell("gap", { channel });
  refreshSoon();
}

function isStale() {
  return [...streamsOfPage().values()].some(({ places }) => oldest(places) === STALE);
}

/** A refresh has left these as they were, and so would the next. */
function acceptPermanentElements() {
  for (const element of elements) {
    if (element.position === STALE && element.closest("[data-turbo-permanent]")) {
      element.position = "";
    }
  }
}

/** Once for all streams, not at the same moment in all browsers, and not again and again. */
function refreshSoon() {
  if (refreshTimer !== undefined) return;
  const now = performance.now();
  if (now - refreshed > 4 * refreshPause) refreshPause = REFRESH_PAUSE;
  const jitter = 100 + 900 * Math.random();
  refreshTimer = setTimeout(refresh, Math.max(jitter, refreshed + refreshPause - now));
}

function refresh() {
  refreshTimer = undefined;
  if (document.hidden || !current || !isStale()) return; // it will be visible, or connected
  if (debug && refreshPause > REFRESH_PAUSE) {
    console.warn("The page is stale again: are there several workers, and no broker between them?");
  }
  refreshed = performance.now();
  refreshPause = Math.min(refreshPause * 2, LONGEST_REFRESH_PAUSE);
  if (window.Turbo.session?.refresh) {
    window.Turbo.session.refresh(document.baseURI);
  } else {
    window.Turbo.visit(location.href, { action: "replace" });
  }
  refreshSoon(); // Turbo does not where a visit is on its way
}

// -- what the page can see ----------------------------------------------------------------------

const state = () => document.documentElement.getAttribute(STATE);

function setState(value) {
  document.documentElement.setAttribute(STATE, value);
}

function markElements() {
  for (const element of elements) {
    const stream = current?.streams.get(channelOf(element.name));
    element.toggleAttribute("connected", stream?.subscribed ?? false);
  }
}

/** Dispatch an event; false where somebody has cancelled it. */
function tell(what, detail, cancelable = false) {
  const event = new CustomEvent(`turbo-stream:${what}`, { bubbles: true, cancelable, detail });
  return document.dispatchEvent(event);
}

function warnOfMissingTarget(event) {
  const render = event.detail.render;
  event.detail.render = (stream) => {
    const { target, targets } = stream;
    const selector = target ? `#${CSS.escape(target)}` : targets;
    if (selector && !document.querySelector(selector)) {
      console.warn(`<turbo-stream action="${stream.action}"> has no effect: no ${selector} here`);
    }
    return render(stream);
  };
}

// -- the beginning ------------------------------------------------------------------------------

function tryNow() {
  clearTimeout(retryTimer);
  retryTimer = undefined;
  update();
  if (isStale()) refreshSoon();
}

/** Over another network, or after a sleep, nothing tells that a connection is dead. */
function startAnew() {
  abandonAttempt();
  current?.shut();
  current?.end(false);
  tryNow();
}

let ticked = Date.now(); // performance.now() stands still while a device sleeps

function tick() {
  const slept = Date.now() - ticked > ASLEEP;
  ticked = Date.now();
  if (slept && current?.transport === "websocket") startAnew(); // the other has its heartbeat
}

function start() {
  customElements.define(TAG, StreamElement);
  document.addEventListener("turbo:load", tryNow);
  document.addEventListener("turbo:render", () => {
    forgetRequests();
    acceptPermanentElements();
    schedule();
  });
  document.addEventListener("turbo:before-fetch-response", rememberRequests);
  if (debug) document.addEventListener("turbo:before-stream-render", warnOfMissingTarget);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      letGo();
    } else {
      tick();
      tryNow();
    }
  });
  window.addEventListener("online", startAnew);
  window.addEventListener("offline", startAnew);
  setInterval(tick, TICK);
  window.addEventListener("pagehide", stop); // so that the browser may keep the page
  window.addEventListener("pageshow", schedule);
  schedule();
}

// A newer version of this file may come with a visit; the page is served already.
if (customElements.get(TAG) === undefined) start();
