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
//
// A signed name permits no position before that of the page that it came with. So a position is
// asked for by the name beside it, and a name that has expired is renewed as "<new>~<old>": the old
// one says from where on.

/**
 * A document without what user content names: <img name="hidden"> hides document.hidden, and
 * <img name="scripts"> document.scripts. turbo.js itself is not protected.
 */
function unnamed(page) {
  const get = (target, name) => {
    const value = Reflect.get(Document.prototype, name, target);
    return typeof value === "function" ? value.bind(target) : value;
  };
  return new Proxy(page, { get });
}

const document = unnamed(window.document);
const script = [...document.scripts].find((each) => each.src === import.meta.url);
const debug = script?.dataset.debug !== undefined;

const TAG = "turbo-stream-from";
const FILE = import.meta.url.split("/").pop(); // differs with its content
const POSITIONS = "data-turbo-stream-positions"; // on <body>: by the names of the metas, as JSON
const OUTDATED = "data-turbo-stream-outdated"; // on <body>: a refresh is still to come
const STATE = "data-turbo-stream-state"; // on <html>: connecting, connected, offline, refused or failed
const STALE = "-";
const RENEWS = "~"; // between a new name and the old one

// In milliseconds.
const FIRST_DELAY = 500; // before the second attempt; doubles with each
const LONGEST_DELAY = 15_000;
const LIBRARY_DELAY = 1000; // until turbo.js is looked for again
const STABLE = 5000; // after having been open for so long, all is well
const CONNECT_TIMEOUT = 10_000;
const SILENCE = 45_000; // without even a heartbeat: an event stream is dead
const UPGRADE_DELAY = 180_000; // from an event stream to a WebSocket
const SOONER_UPGRADE_DELAY = 10_000; // where WebSockets have worked before
const REFRESH_DELAY = 150; // before a refresh: several become one
const REFRESH_INTERVAL = 500; // between two refreshes that messages have asked for
const REFRESH_PAUSE = 5000; // between two refreshes; doubles as long as they do not help
const LONGEST_REFRESH_PAUSE = 300_000;
const REFRESH_TIMEOUT = 60_000;
const BUSY_DELAY = 250; // until it is looked again whether a form or a frame is under way
const RENDER_PATIENCE = 10_000; // with an application that animates a message
const PATIENCE = 60_000; // with a frame or a visit that does not end
const RELOAD_PAUSE = 60_000; // between two reloads because of a refusal
const TICK = 15_000; // timers of hidden tabs may be held back for a minute
const ASLEEP = 100_000; // without a tick: the device slept, or the tab was frozen

const REFUSALS = new Set([400, 401, 403, 404, 410, 413]); // this page would try again in vain
const EXPIRED = 410;
const RELOADED = "turbo-stream-reloaded"; // in sessionStorage, with the path of the page: when
const LAST_REFRESH = "turbo-stream-refresh"; // in sessionStorage
const LONGEST_QUERY = 3072; // servers commonly take request lines of 4 KiB
const MOST_FAILURES = 10; // in succession; then a refresh waits for a new reason
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

// itsdangerous: JSON in base64url, a dot, the time, a dot, the signature. The channel is the first
// of what it holds. Only to compare: what it may subscribe to is for the server to say.
function readable(name) {
  try {
    const binary = atob(name.split(".")[0].replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    const [channel] = [JSON.parse(new TextDecoder().decode(bytes))].flat();
    return typeof channel === "string" ? channel : undefined;
  } catch {
    return undefined;
  }
}

class StreamElement extends HTMLElement {
  static observedAttributes = ["name", "position"];
  static file = FILE; // which version of this file has the page

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

/** The page's streams by channel: { places }, where each has a name and a position. */
function streamsOfPage() {
  const streams = new Map();
  for (const place of [...Object.keys(kept()).map((each) => new Kept(each)), ...elements]) {
    if (place.name === "") continue;
    const channel = channelOf(place.name);
    const places = streams.get(channel)?.places ?? [];
    streams.set(channel, { places: [...places, place] });
  }
  return streams;
}

// -- one connection -----------------------------------------------------------------------------

let endpoint = "/turbo-stream"; // a path, so that no page can name another host

/** Where the page connects: a visit may lead to another application on the same host. */
function endpointOfPage() {
  const path = metas(document)[0]?.dataset.url;
  if (path?.startsWith("/")) endpoint = path;
  return new URL(location.origin + endpoint);
}

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
    for (const [channel, { places }] of streams) {
      const position = oldest(places);
      const { name } = places.filter((place) => place.position === position).pop() ?? places[0];
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
    this.url = endpointOfPage();
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
  if (window.Turbo?.renderStreamMessage) {
    takeRefreshesOver();
    return true;
  }
  setState(navigator.onLine ? "failed" : "offline");
  retryTimer = setTimeout(tryNow, LIBRARY_DELAY);
  if (!complained) {
    console.error(
      "turbo.js is not loaded, so no stream can be shown: see which request of this page has " +
        "failed; if the CDN cannot be reached, put a copy into the application with " +
        "'flask turbo vendor'",
    );
  }
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
    for (const place of places) rename(place, names.get(channel));
  }
  connect(); // in vain where it was another page, as that of a login
}

/** Give a stream its new name. What the page shows is as old as its old name. */
function rename(place, name) {
  const old = place.name.split(RENEWS).pop();
  if (name !== undefined && name !== old) place.rename(name + RENEWS + old);
}

/** The names of another page, by channel. */
function namesIn(html) {
  const page = unnamed(new DOMParser().parseFromString(html, "text/html"));
  const found = metas(page).map((each) => each.content);
  return byChannel([...found, ...namesWithin(page)]);
}

const byChannel = (names) => new Map(names.map((name) => [channelOf(name), name]));
const namesWithin = (root) =>
  [...root.querySelectorAll(TAG)].map((each) => each.getAttribute("name") ?? "");

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
    onMessage(connection, stream, places, channel, position, data);
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
  refreshAgain();
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

let isRendering = false; // a message that is not on the page yet: an application may animate it
const waiting = []; // those behind it, so that all come in their order

function onMessage(...message) {
  if (isRendering) {
    waiting.push(message);
  } else {
    take(...message);
  }
}

function take(connection, stream, places, channel, position, data) {
  const before = places();
  const at = oldest(before);
  if (before.length > 0 && isBehind(at, stream)) {
    if (position !== undefined) stream.seen = position;
    schedule(); // the page gets it, and what it lacks, from a connection of its own
    return;
  }
  const isNew = (place) => position === undefined || !includes(place.position, position);
  let isWanted = () => position === undefined || oldest(places()) === at; // by another page, too
  const moveOn = (isShown) => {
    if (position === undefined) return;
    stream.seen = position;
    for (const place of isShown ? places() : []) {
      if (isNew(place) && place.position !== STALE) place.position = position;
    }
  };
  const isToShow = before.some(isNew) && !isOwn(data);
  const rendering = isToShow && new Rendering(data, { channel, position }, () => isWanted());
  if (!rendering || rendering.isDone) {
    moveOn(before.some(isNew));
    return;
  }
  isRendering = true;
  rendering.whenDone(() => {
    moveOn(rendering.isShown ?? isWanted());
    const { body } = document;
    isWanted = () => document.body === body; // if it comes after our patience
    goOn();
  });
}

/** Take the messages that have waited. Those of a connection that has ended come over the next. */
function goOn() {
  isRendering = false;
  while (!isRendering && waiting.length > 0) {
    const [connection, ...message] = waiting.shift();
    if (!connection.closed) take(connection, ...message);
  }
}

const origins = new WeakMap(); // of elements of streams: { channel, position }

/** The streams of a message on their way to the page: Turbo applies them at once. */
class Rendering {
  isShown; // whether the page wanted it when it was to be shown

  constructor(data, origin, isWanted) {
    this.open = new Set(); // not on the page yet
    // Turbo would wait for the next frame, in which there may be another page, or a copy of this one
    // for the cache. The second listener is the last one: others have said by now what they want.
    const first = ({ target, detail }) => {
      const { render } = detail;
      origins.set(target, origin);
      this.open.add(target);
      detail.render = (stream) => {
        this.isShown = isWanted();
        return this.isShown && this.apply(stream, render);
      };
    };
    const last = async (event) => {
      try {
        if (event.defaultPrevented) return;
        event.preventDefault();
        await event.detail.render(event.target);
      } catch (error) {
        console.error(error);
      } finally {
        this.end(event.target);
      }
    };
    window.addEventListener("turbo:before-stream-render", first, true);
    window.addEventListener("turbo:before-stream-render", last);
    try {
      window.Turbo.renderStreamMessage(data);
    } catch (error) {
      console.error(error);
    } finally {
      window.removeEventListener("turbo:before-stream-render", first, true);
      window.removeEventListener("turbo:before-stream-render", last);
    }
  }

  get isDone() {
    return this.open.size === 0;
  }

  apply(stream, render) {
    const end = keepFieldsOf(stream);
    try {
      return render(stream);
    } finally {
      end();
      this.end(stream);
    }
  }

  end(stream) {
    this.open.delete(stream);
    if (this.isDone) this.onDone?.();
  }

  whenDone(callback) {
    const timer = setTimeout(() => this.onDone(), RENDER_PATIENCE);
    this.onDone = () => {
      clearTimeout(timer);
      this.onDone = undefined;
      callback();
    };
  }
}

/** Show a message that is not of our connection; resolves when it is on the page. */
async function render(data) {
  const rendering = new Rendering(data, {}, () => true);
  if (!rendering.isDone) await new Promise((done) => rendering.whenDone(done));
}

// -- what was typed -----------------------------------------------------------------------------
//
// A field that the user has changed stays as it is when a refresh or a morph brings it anew: for the
// moment of the change it is what Turbo calls permanent, by an id that both have.

const CONTROLS = "input, textarea, select";
const EDITOR = "[contenteditable]:not([contenteditable=false])";
const FIELDS = `${CONTROLS}, ${EDITOR}`;
const PLAIN = // what is empty without text
  "a, b, blockquote, br, code, div, em, font, h1, h2, h3, h4, h5, h6, i, li, ol, p, pre, s, span, " +
  "strong, u, ul";
const NO_TEXT = "[type=hidden], [type=submit], [type=button], [type=image], [type=reset]";
const PERMANENT = "data-turbo-permanent";
const AS_RENDERED = "[data-turbo-stream-reset], [data-turbo-permanent][id]"; // by the application
const KEPT = "turbo-stream-kept-"; // the beginning of ids

const touched = new WeakSet(); // fields in which something was typed or chosen
const rendered = new WeakMap(); // what was in an editor when it first had the focus
const defaults = new WeakMap(); // of choices that were carried into a new version of their field
const sent = new WeakMap(); // what was in a field when its form was sent, and taken
let composing; // the field in which an input method composes

const isEditor = (field) => !field.matches(CONTROLS);
const isText = (field) => !field.matches("select, [type=checkbox], [type=radio], [type=range]");

function valueOf(field) {
  if (isEditor(field)) return field.innerHTML;
  if (field.options) return [...field.options].map((option) => option.selected).join();
  if (field.files) return [...field.files].map((file) => file.name).join();
  return ["checkbox", "radio"].includes(field.type) ? field.checked : field.value;
}

function defaultOf(field) {
  if (field.files) return "";
  if (!field.options) {
    return ["checkbox", "radio"].includes(field.type) ? field.defaultChecked : field.defaultValue;
  }
  const options = [...field.options];
  const chosen = options.map((option) => option.defaultSelected);
  const first = options.findIndex((option) => !option.disabled);
  if (!field.multiple && !chosen.includes(true) && first >= 0) chosen[first] = true;
  return chosen.join();
}

/** What an editor holds; browsers leave a <br> in one that was emptied. */
function contentOf(editor) {
  const isPlain = [...editor.querySelectorAll("*")].every((each) => each.matches(PLAIN));
  const isEmpty = isPlain && editor.textContent.trim() === "";
  return isEmpty ? "" : editor.innerHTML;
}

function noteEditor({ target }) {
  const editor = target.closest?.(EDITOR); // of Firefox, also the document
  if (editor && !rendered.has(editor)) rendered.set(editor, contentOf(editor));
}

function isChanged(field) {
  if (field.closest(AS_RENDERED)) return false;
  const value = valueOf(field);
  if (value === sent.get(field)) return false;
  if (isEditor(field)) return touched.has(field) && contentOf(field) !== rendered.get(field);
  return value !== (defaults.get(field) ?? defaultOf(field));
}

/** Ids that more than one element of the same version has: forms of many rows, mostly. */
function repeatedIds(...versions) {
  const repeated = new Set();
  for (const root of versions) {
    const ids = new Set();
    for (const { id } of root.querySelectorAll("[id]")) (ids.has(id) ? repeated : ids).add(id);
  }
  return repeated;
}

/** What tells the fields of versions of a page apart. */
class Fields {
  #repeated;
  #forms = new Map(); // their numbers
  #numbers; // by the names of forms, which may be long

  constructor(versions, numbers = new Map()) {
    this.#numbers = numbers;
    this.#repeated = repeatedIds(...versions);
  }

  /** The fields of a version, by their names; `outer` is around it. */
  within(root, outer) {
    const fields = new Map();
    const counts = new Map();
    for (const field of [root, ...root.querySelectorAll(FIELDS)]) {
      if (!field.matches?.(FIELDS) || field.matches(NO_TEXT)) continue;
      const name = this.#nameOf(field, outer);
      const count = counts.get(name) ?? 0;
      counts.set(name, count + 1);
      fields.set(`${name} ${count}`, field);
    }
    return fields;
  }

  #nameOf(field, outer) {
    const { id, name, type } = field;
    if (id && !this.#repeated.has(id)) return id;
    const form = field.form ?? field.closest("form") ?? outer?.closest("form");
    const around = (field.parentElement?.closest("[id]") ?? outer?.closest("[id]"))?.id;
    const choice = ["checkbox", "radio"].includes(type) ? field.value : "";
    return JSON.stringify([id, around, form && this.#numberOf(form), name, type, choice]);
  }

  #numberOf(form) {
    if (!this.#forms.has(form)) {
      const text = JSON.stringify(nameOf(form));
      if (!this.#numbers.has(text)) this.#numbers.set(text, this.#numbers.size);
      this.#forms.set(form, this.#numbers.get(text));
    }
    return this.#forms.get(form);
  }
}

/** Where a form leads, and for which of many things. */
function nameOf(form) {
  const hidden = [...form.querySelectorAll("input[type=hidden]")];
  const facts = hidden.filter(({ name }) => !/csrf|token|nonce|idempoten/i.test(name));
  return [form.id, form.getAttribute("action"), ...facts.map(({ name, value }) => [name, value])];
}

/** The form around a field, unless a field named "id" hides its id, also from turbo.js. */
function formOf(field) {
  const form = field.closest("form");
  return typeof form?.id === "string" ? form : null;
}

/**
 * Pairs of what has to stay, and of what would take its place, undefined if nothing would. The field
 * with the focus is among them even if it is as it was rendered: the next key belongs to it.
 */
function changedFields(root, newRoot, outer) {
  const fields = new Fields([root, newRoot]);
  const newFields = fields.within(newRoot, outer);
  const pairs = new Map();
  for (const frame of withErrors) {
    const newFrame =
      root.contains(frame) && newRoot.querySelector(`turbo-frame[id="${CSS.escape(frame.id)}"]`);
    if (newFrame) pairs.set(frame, newFrame);
  }
  for (const [key, field] of fields.within(root)) {
    const newField = newFields.get(key);
    if (!isChanged(field)) {
      if (field === document.activeElement && newField) pairs.set(field, newField);
      continue;
    }
    const frame = field.closest("turbo-frame[id]");
    const newFrame = frame && newRoot.querySelector(`turbo-frame[id="${CSS.escape(frame.id)}"]`);
    const form = isEditor(field) && formOf(field); // with the hidden field of the editor
    if (newField) {
      const newForm = form && formOf(newField);
      pairs.set(newForm ? form : field, newForm || newField);
    } else if (newFrame) {
      pairs.set(frame, newFrame);
    } else if (touched.has(field) && isText(field)) {
      pairs.set(field, undefined); // a script makes a choice again with what it has made
    }
  }
  return pairs;
}

/** Have Turbo leave the changed fields of these pairs as they are; returns what ends that. */
function keepFields(changed, newRoot) {
  const isPage = newRoot.nodeType === Node.ELEMENT_NODE;
  const pairs = changed.filter(([, other]) => other);
  const elements = new Set(pairs.map(([element]) => element));
  const kept = pairs.filter(([element]) => !isWithin(element.parentElement, elements));
  const repeated = kept.length > 0 ? repeatedIds(document, newRoot) : new Set();
  const focusAgain = keepFocus(); // with the ids of the application
  const named = new Set(); // new versions, of which several targets have one
  const before = new Map(); // ids, and whether they are permanent, by the ids of now
  const choices = [];
  const stay = []; // pairs of what has to look the same afterwards
  for (const [element, other] of kept) {
    const isFocused = hasFocusOnly(element);
    const isCarried = !isFocused && isReplaced(element);
    if (!isFocused) stay.push([element, other]);
    if (!named.has(other)) {
      named.add(other);
      const id = other.getAttribute("id"); // other.id may be a field of a form
      const isPermanent = other.hasAttribute(PERMANENT);
      const isUsable = id && /^[a-z_][\w-]*$/i.test(id) && !repeated.has(id);
      if (!isUsable) other.setAttribute("id", KEPT + before.size);
      before.set(other.getAttribute("id"), [id, isPermanent]);
      if (isPage && !isFocused && !isCarried) other.setAttribute(PERMANENT, "");
    }
    element.setAttribute("id", other.getAttribute("id"));
    if (isCarried) {
      const carry = carryChoice(element, other);
      if (isPage) carry(other);
      choices.push(() => carry(element.isConnected ? element : other));
    } else if (!isFocused) {
      element.setAttribute(PERMANENT, "");
    }
  }
  for (const [element, other] of stay) keepOpen(element, other);
  return () => {
    for (const [id, [old, isPermanent]] of before) {
      for (const element of document.querySelectorAll(`[id="${CSS.escape(id)}"]`)) {
        element.toggleAttribute(PERMANENT, isPermanent);
        if (old === null) {
          element.removeAttribute("id");
        } else {
          element.setAttribute("id", old);
        }
      }
    }
    for (const choose of choices) choose();
    focusAgain();
    tellOfKept(stay.map(([element, other]) => (element.isConnected ? element : other)));
  };
}

const hasFocusOnly = (element) => element.matches(FIELDS) && !isChanged(element);

function tellOfKept(kept) {
  const fields = kept.flatMap((each) =>
    each.matches(FIELDS) ? [each] : [...each.querySelectorAll(FIELDS)].filter(isChanged),
  );
  if (fields.length === 0) return;
  const untouched = fields.filter((field) => !touched.has(field));
  tell("fields-kept", { fields });
  for (const field of untouched) touched.delete(field); // an event of a script is not the user
}

function isWithin(element, elements) {
  for (let each = element; each; each = each.parentElement) if (elements.has(each)) return true;
  return false;
}

/** What the user has opened around a field stays open. */
function keepOpen(element, other) {
  const around = (each) => each.parentElement?.closest("details");
  let [details, newDetails] = [around(element), around(other)];
  while (details && newDetails) {
    if (details.open) newDetails.open = true;
    [details, newDetails] = [around(details), around(newDetails)];
  }
}

/** Whether a script shows something else in its place, which goes with the old version. */
function isReplaced(field) {
  const { width, height } = field.getBoundingClientRect();
  return field.matches("select") && (width <= 1 || height <= 1);
}

/** The options of a <select>, by their values; several may have the same. */
function byValue(options) {
  const counts = new Map();
  return [...options].map((option) => {
    const count = counts.get(option.value) ?? 0;
    counts.set(option.value, count + 1);
    return [`${count} ${option.value}`, option];
  });
}

/** Return what makes the choice in a new version of a <select>, so that a script begins with it. */
function carryChoice(select, newSelect) {
  const before = defaultOf(newSelect);
  const options = byValue(select.options).filter(([, option]) => option.selected);
  const facts = options.map(([key, { text, value }]) => [key, { text, value }]);
  return (target) => {
    const chosen = new Map(facts);
    for (const [key, option] of byValue(target.options)) option.selected = chosen.delete(key);
    for (const { text, value } of chosen.values()) target.add(new Option(text, value, false, true));
    if (facts.length === 0) target.selectedIndex = -1;
    defaults.set(target, before);
  };
}

/** Return what puts the focus and the selection where they are now. */
function keepFocus() {
  const field = document.activeElement;
  if (!field?.matches(FIELDS)) return () => {};
  const numbers = new Map(); // the same before and after
  const fieldsOfPage = () => new Fields([document.body], numbers).within(document.body);
  const [key] = [...fieldsOfPage()].find(([, each]) => each === field) ?? [];
  const { selectionStart, selectionEnd, selectionDirection } = field;
  const { anchorNode, anchorOffset, focusNode, focusOffset } = document.getSelection();
  return () => {
    const target = field.isConnected ? field : fieldsOfPage().get(key);
    if (!target || (target === field && document.activeElement === field)) return;
    target.focus({ preventScroll: true });
    if (isEditor(target)) {
      const isThere = anchorNode?.isConnected && focusNode?.isConnected;
      const selection = document.getSelection();
      if (isThere) selection.setBaseAndExtent(anchorNode, anchorOffset, focusNode, focusOffset);
    } else if (typeof selectionStart === "number") {
      target.setSelectionRange(selectionStart, selectionEnd, selectionDirection);
    }
  };
}

/** Keep what is typed in the targets of a stream that changes only what differs. */
function keepFieldsOf(stream) {
  const targets = stream.getAttribute("method") === "morph" ? stream.targetElements : [];
  const { content } = stream.querySelector("template") ?? {};
  if (targets.length === 0 || !content) return () => {};
  const changed = targets.flatMap((target) => {
    const outer = stream.action === "update" ? target : target.parentElement;
    return [...changedFields(target, content, outer)];
  });
  return keepFields(changed, content);
}

const sending = new WeakMap(); // by submission, what is in the fields of its form

function noteFields({ detail }) {
  const fields = [...detail.formSubmission.formElement.querySelectorAll(FIELDS)];
  sending.set(
    detail.formSubmission,
    fields.map((field) => [field, valueOf(field)]),
  );
}

function noteSent({ detail }) {
  if (!detail.success || detail.formSubmission.isSafe) return; // a search stays as it was typed
  for (const [field, value] of sending.get(detail.formSubmission) ?? []) sent.set(field, value);
}

// -- what this page has caused itself -----------------------------------------------------------

// A message names the request that has caused it by a digest: others see the message, and with the
// id itself they could have the server cause messages that this page leaves out.

const LONGEST_MEMORY = 100;
const own = new Map(); // digests of the requests of this page, by their ids
let foreign = new Set(); // those of pages that were here before; Turbo keeps 20 of all
const submitting = new Map(); // ids by forms whose answer is still to come, whatever page it finds

const recentRequests = () => [...(window.Turbo?.session?.recentRequests ?? [])];

function rememberRequests() {
  for (const id of recentRequests()) {
    if (!foreign.has(id) && !own.has(id)) own.set(id, digest(id));
  }
  for (const id of own.keys()) {
    if (own.size <= LONGEST_MEMORY) break;
    own.delete(id);
  }
}

function forgetRequests() {
  const awaited = new Set(submitting.values());
  foreign = new Set(recentRequests().filter((id) => !awaited.has(id)));
  for (const id of own.keys()) {
    if (!awaited.has(id)) own.delete(id);
  }
}

/** Note the id of a request, which Turbo makes after this event. */
function noteSubmission({ detail }) {
  queueMicrotask(() => submitting.set(detail.formSubmission, recentRequests().pop()));
}

function isOwn(data) {
  const sender = senderOf(data);
  if (sender === undefined) return false;
  rememberRequests();
  return [...own.values()].includes(sender);
}

function isOwnRequest(id) {
  rememberRequests();
  return own.has(id);
}

function senderOf(data) {
  if (!data.includes("data-sender=")) return undefined;
  const template = document.createElement("template");
  template.innerHTML = data;
  return template.content.querySelector("turbo-stream[data-sender]")?.dataset.sender;
}

const primes = [];
for (let n = 2; primes.length < 64; n += 1) {
  if (primes.every((prime) => n % prime !== 0)) primes.push(n);
}
const fraction = (root) => ((root % 1) * 2 ** 32) | 0;
const START = primes.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));
const ROUNDS = primes.map((prime) => fraction(Math.cbrt(prime)));
const turn = (word, ...by) => by.reduce((sum, n) => sum ^ (word >>> n) ^ (word << (32 - n)), 0);

/**
 * The first half of SHA-256 (FIPS 180-4 §6.2) of an id, which fits into one block. The browser's own
 * is there for secure pages only, and answers later.
 */
function digest(id) {
  if (!/^[ -~]{1,55}$/.test(id)) return undefined; // none of turbo.js
  const block = new DataView(new ArrayBuffer(64));
  for (let i = 0; i < id.length; i += 1) block.setUint8(i, id.charCodeAt(i));
  block.setUint8(id.length, 0x80);
  block.setUint32(60, 8 * id.length);
  const words = Array.from({ length: 16 }, (_, i) => block.getUint32(4 * i));
  for (let i = 16; i < 64; i += 1) {
    const [near, far] = [words[i - 2], words[i - 15]];
    const sum = (turn(far, 7, 18) ^ (far >>> 3)) + (turn(near, 17, 19) ^ (near >>> 10));
    words.push((words[i - 16] + words[i - 7] + sum) | 0);
  }
  const state = [...START];
  for (let i = 0; i < 64; i += 1) {
    const [a, b, c, , e, f, g, h] = state;
    const one = h + turn(e, 6, 11, 25) + ((e & f) ^ (~e & g)) + ROUNDS[i] + words[i];
    const two = turn(a, 2, 13, 22) + ((a & b) ^ (a & c) ^ (b & c));
    state.pop();
    state.unshift((one + two) | 0);
    state[4] = (state[4] + one) | 0;
  }
  const half = state.slice(0, 4).map((word, i) => (word + START[i]) >>> 0);
  return half.map((word) => word.toString(16).padStart(8, "0")).join("");
}

// -- gaps ---------------------------------------------------------------------------------------

function onGap(stream, places, channel, position) {
  stream.gap = true;
  stream.seen = position;
  // A page that came in the meantime lacks nothing.
  if (places.every((place) => includes(place.position, position))) return;
  for (const place of places) place.position = STALE;
  tell("gap", { channel });
  refreshLater();
}

function isStale() {
  return [...streamsOfPage().values()].some(({ places }) => oldest(places) === STALE);
}

let names = new Map(); // of the body that Turbo is about to show, by channel

/** A refresh has left these as they were, and so would the next. Their names are as old. */
function acceptPermanentElements() {
  for (const element of elements) {
    if (element.position === STALE && element.closest("[data-turbo-permanent]")) {
      element.rename(names.get(channelOf(element.name)) ?? element.name);
      element.position = "";
    }
  }
  names = new Map();
}

// -- refreshes ----------------------------------------------------------------------------------
//
// A page wants a refresh when a message says so, or after a gap. It keeps that in its body, for when
// it comes back from Turbo's cache. We fetch the page and let Turbo show it, so that the page stays
// where it is until there is something better to show:
//
//   wanted ── visible, connected, nothing under way that it would end ──> fetched
//   fetched ─ and meanwhile the page has changed ───────────────────────> wanted, at once
//           ─ a page ───────────────────────────────────────────────────> shown
//           ─ an error, or nothing ─────────────────────────────────────> wanted, after a pause; ten times
//           ─ 401, 403, a redirect ─────────────────────────────────────> followed, unless the page objects
//   shown ─── older than what has asked for it: a copy from a cache ────> wanted, after a pause
//
// The pause doubles, and no message makes it shorter.

let refreshTimer;
let refreshPause = REFRESH_PAUSE;
let refreshed = -Infinity; // when the last one began
let notBefore = -Infinity; // as the server has said
let inVain = false; // the last one has failed, or has brought an older copy
let failures = 0; // in succession
let unreachable = false; // by the last one
let isOwnWish = false; // an answer to a form wants it, and no connection is needed
let options = {}; // method and scroll, as the messages say
let fetching = false;
let changes = 0; // of the page, by others than messages: what was fetched before them is too old
let covered = { url: "", seen: new Map() }; // what the last refresh was fetched after
let lastShown; // { visit, text }
let busySince;

/** Take a <turbo-stream action="refresh">, in place of turbo.js, which would end a form under way. */
function onRefresh() {
  const { channel, position } = origins.get(this) ?? {};
  const [method, scroll] = ["method", "scroll"].map((name) => this.getAttribute(name) ?? undefined);
  if (isOwnRequest(this.getAttribute("request-id"))) return;
  options = { method: method ?? options.method, scroll: scroll ?? options.scroll };
  document.body.setAttribute(OUTDATED, "");
  const isCovered =
    covered.url === location.href && includes(covered.seen.get(channel) ?? "", position ?? "");
  if (isCovered) {
    refreshLater(); // it came again, after an older copy of the page
    return;
  }
  if (position === undefined) changes += 1;
  if (channel === undefined) {
    isOwnWish = true;
    inVain = false;
  }
  if (failures >= MOST_FAILURES) beginAgain();
  refreshSoon();
}

function beginAgain() {
  clearTimeout(refreshTimer);
  refreshTimer = undefined;
  refreshPause = REFRESH_PAUSE;
  failures = 0;
}

let tookOver = false;

function takeRefreshesOver() {
  if (tookOver) return;
  tookOver = true;
  window.Turbo.StreamActions.refresh = onRefresh;
}

const isOutdated = () => document.body.hasAttribute(OUTDATED) || isStale();

/** As a message wants it: soon, and once for several. */
function refreshSoon() {
  if (inVain) {
    refreshLater();
    return;
  }
  clearTimeout(refreshTimer);
  const now = performance.now();
  const delay = Math.max(REFRESH_DELAY, refreshed + REFRESH_INTERVAL - now);
  refreshTimer = setTimeout(refresh, delay);
}

/** Not at the same moment in all browsers, and not again and again. */
function refreshLater() {
  if (refreshTimer !== undefined || fetching || failures >= MOST_FAILURES) return;
  const now = performance.now();
  if (now - refreshed > 4 * refreshPause) refreshPause = REFRESH_PAUSE;
  const pause = refreshPause * (1 + 0.2 * Math.random());
  const jitter = 100 + 900 * Math.random();
  const delay = Math.max(0, refreshed + pause - now, notBefore - now) + jitter;
  refreshTimer = setTimeout(() => {
    if (debug && refreshPause > REFRESH_PAUSE && isStale()) {
      console.warn("The page is stale again: are there several workers, and no broker between them?");
    }
    refreshPause = Math.min(refreshPause * 2, LONGEST_REFRESH_PAUSE);
    refresh();
  }, delay);
}

/** The page is connected, visible or another one: whatever failed before may work now. */
function refreshAgain() {
  if (!isOutdated()) return;
  if (failures > 0) beginAgain();
  if (isStale()) {
    refreshLater();
  } else {
    refreshSoon();
  }
}

async function refresh() {
  clearTimeout(refreshTimer);
  refreshTimer = undefined;
  // It will be visible, or connected.
  const isConnected = current !== undefined || isOwnWish;
  if (fetching || document.hidden || !isConnected || !isOutdated()) return;
  const isOwn = isOwnWish;
  if (isBusy(isOwn) || showsErrors()) {
    refreshTimer = setTimeout(refresh, BUSY_DELAY);
    return;
  }
  const url = location.href;
  const before = changes;
  const streams = current?.streams ?? new Map();
  const seen = [...streams].map(([channel, stream]) => [channel, stream.seen]);
  covered = { url, seen: new Map(seen) };
  refreshed = performance.now();
  fetching = true;
  isOwnWish = false;
  const answer = await fetchPage(url);
  while (isBusy(isOwn || isOwnWish)) await new Promise((resolve) => setTimeout(resolve, BUSY_DELAY));
  fetching = false;
  isOwnWish ||= isOwn; // until it is shown
  if (changes !== before || location.href !== url || document.hidden || showsErrors()) {
    covered = { url: "", seen: new Map() };
    if (isOutdated()) refreshSoon();
  } else {
    onAnswer(answer);
  }
}

async function fetchPage(url) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), REFRESH_TIMEOUT);
  try {
    const request = {
      headers: { Accept: "text/html, application/xhtml+xml" },
      credentials: "same-origin",
      cache: "reload", // an older copy would not help
      // To another origin it fails as if the network did.
      redirect: unreachable ? "manual" : "follow",
      signal: controller.signal,
    };
    await tellOfRequest(url, request);
    const response = await (window.Turbo.fetch ?? fetch)(url, request);
    return { response, text: await response.text() };
  } catch {
    return undefined; // the network, or nothing in time
  } finally {
    clearTimeout(timer);
  }
}

/** Dispatch what turbo.js does before its own requests: listeners may add header fields, or wait. */
function tellOfRequest(url, fetchOptions) {
  return new Promise((resume) => {
    const detail = { fetchOptions, url: new URL(url), resume };
    const event = new CustomEvent("turbo:before-fetch-request", {
      bubbles: true,
      cancelable: true,
      detail,
    });
    fetchOptions.signal.addEventListener("abort", resume); // a listener may never resume it
    if (document.documentElement.dispatchEvent(event)) resume();
  });
}

function onAnswer(answer) {
  const { response, text } = answer ?? {};
  unreachable = answer === undefined;
  const isPage = /^(text\/html|application\/xhtml\+xml)\b/.test(response?.headers.get("Content-Type"));
  if (response?.type === "opaqueredirect") {
    if (mayLeave()) location.reload();
  } else if (isPage && [401, 403].includes(response.status)) {
    if (mayLeave()) show(response, text);
  } else if (!isPage || !response.ok) {
    failures += 1;
    inVain = true;
    notBefore = performance.now() + retryAfter(response);
    refreshLater();
  } else if (response.redirected && withoutHash(response.url) !== withoutHash(location.href)) {
    if (mayLeave()) show(response, text);
  } else {
    failures = 0;
    if (losesText(text)) {
      inVain = true;
      refreshLater();
    } else if (inVain && text === lastShown?.text && !isStale()) {
      refreshLater(); // the same copy again
    } else {
      show(response, text);
    }
  }
}

/** Whether a page has no place for what somebody has typed. */
function losesText(text) {
  const { body } = new DOMParser().parseFromString(text, "text/html");
  return [...changedFields(document.body, body).values()].includes(undefined);
}

const withoutHash = (url) => url.split("#")[0];

/** Whether the page may be left for the answer to a refresh; if it objects, it stays. */
function mayLeave() {
  if (tell("before-reload", undefined, true)) return true;
  failures = MOST_FAILURES;
  return false;
}

/** How long a server asks to wait, in milliseconds: it says seconds, or a date. */
function retryAfter(response) {
  const value = response?.headers.get("Retry-After");
  if (!value) return 0;
  const wait = Number.isNaN(Number(value)) ? Date.parse(value) - Date.now() : 1000 * Number(value);
  return Math.min(Math.max(wait || 0, 0), LONGEST_REFRESH_PAUSE);
}

/** Have Turbo show a page that was fetched, as it shows the answer to a form. */
function show(response, text) {
  const { status: statusCode, redirected, url } = response;
  const location = redirected ? url : window.location.href;
  const { method, scroll } = options;
  const isWriting = document.activeElement?.matches(FIELDS) ?? false;
  options = {};
  lastShown = undefined;
  window.Turbo.visit(location, {
    action: "replace",
    shouldCacheSnapshot: false,
    refresh: { method, scroll: scroll ?? (isWriting ? "preserve" : undefined) },
    response: { statusCode, redirected, responseHTML: text },
  });
  isOwnWish = false;
  const visit = window.Turbo.navigator.currentVisit; // none where a listener has cancelled it
  if (visit) {
    lastShown = { visit, text };
  } else {
    failures += 1;
    refreshLater();
  }
}

function isOurs() {
  const visit = window.Turbo.navigator?.currentVisit;
  return visit !== undefined && visit === lastShown?.visit;
}

let endOfKeeping = () => {};

function beforeShown(newBody) {
  if (!isOurs()) return;
  endOfKeeping = keepFields([...changedFields(document.body, newBody)], newBody);
}

/** After Turbo has shown a page: is it ours, and is it as new as it has to be? */
function lookAtShown() {
  queueMicrotask(endOfKeeping); // when Turbo has moved the focus
  endOfKeeping = () => {};
  if (!isOurs()) {
    changes += 1;
    return;
  }
  inVain = [...streamsOfPage()].some(([channel, { places }]) =>
    isBefore(oldest(places), covered.seen.get(channel) ?? ""),
  );
  if (!inVain) return;
  if (debug) console.warn("The page is older than what is pushed to it: is it from a cache?");
  document.body.setAttribute(OUTDATED, "");
  refreshLater();
}

/** A page that wants to be loaded in full takes this script with it. Let the next one know. */
function rememberRefresh() {
  if (!isOurs()) return;
  const { url, seen } = covered;
  const last = { url, seen: [...seen], pause: refreshPause, at: Date.now() };
  storage("setItem", LAST_REFRESH, JSON.stringify(last));
}

function recallRefresh() {
  const last = JSON.parse(storage("getItem", LAST_REFRESH));
  storage("removeItem", LAST_REFRESH);
  if (last?.url !== location.href) return;
  covered = { url: last.url, seen: new Map(last.seen) };
  refreshPause = last.pause;
  refreshed = performance.now() - Math.max(0, Date.now() - last.at);
}

/** Whether a position is before another one of the same log. */
function isBefore(position, other) {
  const [[epoch, offset], [otherEpoch, otherOffset]] = [split(position), split(other)];
  return epoch !== "" && epoch === otherEpoch && offset < otherOffset;
}

// What a refresh must not end.

const withErrors = new Set(); // <html>, or frames, which show the answer to a form that has failed

const MODAL = CSS.supports("selector(:modal)") ? "dialog[open]:modal" : "dialog[open]";

let answered; // the dialog whose form was answered last

let left; // the visit that was left to the browser: of a download, mostly

/** A dialog that a morph has closed by its attribute alone would still keep the user from the page. */
function closeDialogs() {
  if (!CSS.supports("selector(:modal)")) return;
  for (const dialog of document.querySelectorAll("dialog:modal:not([open])")) {
    dialog.setAttribute("open", ""); // or close() would do nothing
    dialog.close();
  }
}

/** Whether something is under way that the next page would end; a form in a dialog may want that. */
function isBusy(isOwn) {
  const visit = window.Turbo.navigator?.currentVisit;
  const isVisiting = visit !== undefined && visit !== left;
  if (!isVisiting && document.querySelector("turbo-frame[busy]") === null) {
    busySince = undefined;
  } else {
    busySince ??= performance.now();
  }
  if (submitting.size > 0 || composing?.isConnected) return true;
  const dialogs = [...document.querySelectorAll(MODAL)];
  if (dialogs.some((each) => !isOwn || each !== answered)) return true;
  return performance.now() - busySince < PATIENCE;
}

const canBeSeen = (element) =>
  element.checkVisibility({ visibilityProperty: true, opacityProperty: true });

// A frame with display: contents has no box of its own.
const isHidden = (element) =>
  "checkVisibility" in element &&
  !canBeSeen(element) &&
  ![...element.querySelectorAll("*")].some(canBeSeen);

/** Whether the page shows what the user has to correct, which no other page would. */
function showsErrors() {
  for (const each of withErrors) {
    if (!each.isConnected) withErrors.delete(each);
  }
  return [...withErrors].some((each) => !isHidden(each));
}

function onSubmitStart() {
  changes += 1;
}

async function onSubmitEnd({ detail }) {
  const { formSubmission, success, fetchResponse } = detail;
  changes += 1;
  answered = formSubmission.formElement.closest("dialog");
  const shownIn = formSubmission.delegate?.element ?? document.documentElement; // of a frame's
  withErrors.delete(shownIn);
  // Turbo shows no other answer, and streams leave the form where it is.
  const isShown = success === false && fetchResponse?.isHTML && (await fetchResponse.responseHTML);
  if (isShown) {
    withErrors.add(shownIn);
  } else if (isOutdated()) {
    refreshSoon();
  }
}

/** A page that was visited is there, or a frame is told to show something else. */
function forgetErrors({ type, target }) {
  if (type === "turbo:load") {
    withErrors.delete(document.documentElement);
  } else if (withErrors.delete(target) && isOutdated()) {
    refreshLater();
  }
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

// -- streams of events that are turbo.js's own --------------------------------------------------
//
// The address of a <turbo-stream-source> is of the time when the page was made. A copy of the page
// from the cache would open it there, and show again what the copy shows already. So its address
// moves with each message.

const sources = document.getElementsByTagName("turbo-stream-source"); // live
const taken = new WeakSet();

function takeSources() {
  for (const element of sources) {
    const source = element.streamSource;
    if (!(source instanceof EventSource) || taken.has(source)) continue;
    taken.add(source);
    window.Turbo.disconnectStreamSource(source); // which would show a message in the next frame
    source.addEventListener("message", async ({ data, lastEventId }) => {
      await render(data);
      if (!lastEventId || element.streamSource !== source) return;
      const url = new URL(source.url);
      url.searchParams.set("lastEventId", lastEventId);
      element.setAttribute("src", url);
    });
  }
}

// -- the beginning ------------------------------------------------------------------------------

function tryNow() {
  clearTimeout(retryTimer);
  retryTimer = undefined;
  update();
  refreshAgain();
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
  recallRefresh();
  document.addEventListener("turbo:load", forgetErrors);
  document.addEventListener("turbo:load", tryNow);
  document.addEventListener("turbo:before-fetch-request", forgetErrors);
  document.addEventListener("turbo:reload", rememberRefresh);
  document.addEventListener("turbo:submit-start", noteFields);
  document.addEventListener("turbo:submit-end", noteSent);
  document.addEventListener("turbo:submit-start", onSubmitStart);
  document.addEventListener("turbo:submit-end", onSubmitEnd);
  document.addEventListener("focusin", noteEditor);
  document.addEventListener("beforeinput", noteEditor); // the focus may be older than this script
  document.addEventListener("input", ({ target }) => {
    touched.add(target);
    sent.delete(target);
  });
  document.addEventListener("turbo:morph-element", ({ target }) => {
    touched.delete(target);
    defaults.delete(target);
    if (rendered.has(target)) rendered.set(target, contentOf(target));
  });
  document.addEventListener("compositionstart", ({ target }) => (composing = target));
  document.addEventListener("compositionend", () => (composing = undefined));
  document.addEventListener("turbo:reload", () => (left = window.Turbo.navigator?.currentVisit));
  document.addEventListener("turbo:before-render", ({ detail }) => {
    names = byChannel(namesWithin(detail.newBody));
    beforeShown(detail.newBody);
  });
  document.addEventListener("turbo:render", () => {
    closeDialogs();
    forgetRequests();
    acceptPermanentElements();
    lookAtShown();
    schedule();
  });
  document.addEventListener("turbo:before-fetch-response", rememberRequests);
  document.addEventListener("turbo:submit-start", noteSubmission);
  document.addEventListener("turbo:submit-end", ({ detail }) => {
    submitting.delete(detail.formSubmission);
  });
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
  new MutationObserver(takeSources).observe(document.documentElement, {
    childList: true,
    subtree: true,
  });
  takeSources();
  schedule();
}

/** Leave the next link to the browser: another version of this file has the page. */
function loadNextPageInFull() {
  const leave = (event) => {
    // A visit keeps what is in these, and a load does not.
    if (document.querySelector("[data-turbo-permanent]") === null) event.preventDefault();
  };
  document.addEventListener("turbo:click", leave);
  document.addEventListener("turbo:before-prefetch", leave); // it would be fetched twice
}

// Another version of this file may come with a visit, or the same from another address.
const first = customElements.get(TAG);
if (first === undefined) {
  start();
} else if (first.file !== FILE) {
  loadNextPageInFull();
}
