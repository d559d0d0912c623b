import { follow } from "./channel.js";

const MOST_LINES = 500;

const room = document.getElementById("room");
const join = document.getElementById("join");
const nameInput = document.getElementById("name");
const form = document.getElementById("form");
const input = document.getElementById("message");
const stateLine = document.getElementById("state");
const log = document.getElementById("log");
const people = document.getElementById("people");
const online = document.getElementById("online");

const unseen = new Map(); // sent from here, not yet received back: id -> text
const lines = new Map(); // shown messages: id -> line
const present = new Set();
let me;
let socket;
let caughtUp = false; // connected, and the history has been shown

// Texts come from other users: insert them as textContent, never as HTML.
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function initialOf(name) {
  const badge = element("span", "badge", [...name][0].toUpperCase());
  badge.ariaHidden = "true";
  let hue = 0;
  for (const letter of name) {
    hue = (hue * 31 + letter.codePointAt(0)) % 360;
  }
  badge.style.setProperty("--hue", hue);
  return badge;
}

function append(line) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  log.append(line);
  while (log.childElementCount > MOST_LINES) {
    lines.delete(log.firstElementChild.dataset.id);
    log.firstElementChild.remove();
  }
  if (atEnd) {
    log.scrollTop = log.scrollHeight;
  }
}

function note(text, className = "event") {
  append(element("div", className, text));
}

function show({ id, name, text, at }) {
  if (unseen.delete(id)) {
    lines.get(id)?.remove(); // replaces the line “sending…”, in the order that all pages share
  } else if (lines.has(id)) {
    return; // sent twice, or already shown before a gap
  }
  const when = new Date(at * 1000);
  const line = element("div", name === me ? "message mine" : "message");
  const head = element("span", "head", name);
  const time = element("time", "", when.toLocaleTimeString([], { timeStyle: "short" }));
  time.dateTime = when.toISOString();
  head.append(" ", time);
  line.append(initialOf(name), head, element("p", "words", text));
  line.dataset.id = id;
  lines.set(id, line);
  append(line);
}

function showOnItsWay(id, text) {
  const line = element("div", "message mine pending");
  line.append(initialOf(me), element("span", "head", "sending…"), element("p", "words", text));
  line.dataset.id = id;
  lines.set(id, line);
  append(line);
  log.scrollTop = log.scrollHeight;
}

function showPeople() {
  online.value = present.size;
  const names = [...present].sort((a, b) => a.localeCompare(b));
  people.replaceChildren(
    ...names.map((name) => {
      const person = element("li", "person");
      person.append(initialOf(name), element("span", "", name));
      if (name === me) {
        person.append(" ", element("small", "", "you"));
      }
      return person;
    }),
  );
}

function onPresence({ event, identity, identities }) {
  if (event === "presence") {
    present.clear();
    identities.forEach((name) => present.add(name));
    // Arrives after the history, and again when the server has recovered the list.
    if (!caughtUp) {
      caughtUp = true;
      unseen.forEach((text, id) => send(id, text)); // send again what has not come back
    }
  } else if (event === "join" && !present.has(identity)) {
    present.add(identity);
    note(`${identity} joined`);
  } else if (event === "leave" && present.delete(identity)) {
    note(`${identity} left`);
  }
  showPeople();
}

function send(id, text) {
  socket.send(JSON.stringify({ id, text }));
}

function onState(state, words) {
  stateLine.dataset.state = state;
  stateLine.textContent = words;
  room.classList.toggle("away", state !== "open");
  caughtUp &&= state === "open";
}

function enter(name) {
  me = name;
  sessionStorage.setItem("name", name);
  join.hidden = true;
  room.hidden = false;
  socket = follow(`${room.dataset.socket}?name=${encodeURIComponent(name)}`, {
    since: "start",
    onMessage: show,
    onGap: () => note("Some messages may be missing here.", "event gap"),
    onPresence,
    onState,
  });
  input.focus();
}

join.addEventListener("submit", (event) => {
  event.preventDefault();
  const name = nameInput.value.trim().replace(/\s+/g, " ");
  if (name) {
    enter(name);
  }
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  input.value = "";
  input.focus();
  if (!text) {
    return;
  }
  const id = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
  unseen.set(id, text);
  showOnItsWay(id, text);
  if (caughtUp) {
    send(id, text);
  }
});

document.getElementById("leave").addEventListener("click", () => {
  sessionStorage.removeItem("name");
  location.reload();
});

// After a reload the page keeps the name.
const known = sessionStorage.getItem("name");
if (known) {
  enter(known);
}
