import { follow } from "./events.js";
import { showStream } from "./page.js";

const MOST_LINES = 500;

const log = document.getElementById("log");
const form = document.getElementById("form");

// The history arrives part by part, so sort the lines by time.
function insert(line) {
  let before = log.lastElementChild;
  while (before && Number(before.dataset.time) > Number(line.dataset.time)) {
    before = before.previousElementSibling;
  }
  log.insertBefore(line, before ? before.nextElementSibling : log.firstElementChild);
}

function add(className, time, ...texts) {
  const atEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 20;
  const line = document.createElement("li");
  line.className = className;
  line.dataset.time = time;
  for (const text of texts) {
    const part = document.createElement("span");
    part.textContent = text; // never as HTML
    line.append(part);
  }
  insert(line);
  if (log.children.length > MOST_LINES) {
    log.firstElementChild.remove();
  }
  if (atEnd) {
    log.scrollTop = log.scrollHeight;
  }
}

const handlers = {
  message(event) {
    const { time, part, level, text } = JSON.parse(event.data);
    const clock = new Date(1000 * time).toLocaleTimeString([], { hourCycle: "h23" });
    add(`${part} ${level.toLowerCase()}`, time, clock, part, text);
  },
  gap() {
    add("gap", Date.now() / 1000, "", "", "some lines are missing");
  },
};
follow(log.dataset.stream, handlers, showStream);

document.getElementById("parts").addEventListener("change", (event) => {
  const parts = event.currentTarget;
  if (parts.querySelector(":checked")) {
    parts.requestSubmit();
  } else {
    event.target.checked = true; // a stream needs at least one channel
  }
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  await fetch("", { method: "POST", body: new FormData(form), redirect: "manual" });
  form.reset();
});
