// Shared by the pages: the connection's state, the log and the input.

const stateLine = document.getElementById("state");
const log = document.getElementById("log");
const form = document.getElementById("form");
const input = document.getElementById("message");

export function showState(state, words) {
  stateLine.dataset.state = state;
  stateLine.textContent = words;
  const button = form?.querySelector("button");
  if (button) {
    button.disabled = state !== "open";
  }
}

const STREAM = { open: ["open", "live"], lost: ["waiting", "reconnecting"] };

/** Show the state of a stream that events.js follows. */
export function showStream(state) {
  showState(...STREAM[state]);
}

// The text comes from other users: insert it as textContent, never as HTML.
export function addLine(text, { aside = "", className = "" } = {}) {
  const line = document.createElement("li");
  const words = document.createElement("span");
  words.textContent = text;
  words.className = className;
  const note = document.createElement("small");
  note.textContent = aside;
  line.append(words, note);
  log.append(line);
  log.scrollTop = log.scrollHeight;
}

export function onSubmit(send) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(input.value);
    input.value = "";
    input.focus();
  });
}
