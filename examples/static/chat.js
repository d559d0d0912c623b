import { addLine, onSubmit, showState } from "./page.js";
import { connect } from "./socket.js";

const join = document.getElementById("join");
const online = document.getElementById("online");

function show(text) {
  const event = JSON.parse(text);
  if (event.text !== undefined) {
    addLine(`${event.name}: ${event.text}`);
    return;
  }
  online.value = event.online;
  const words = event.joined === undefined ? `${event.left} left` : `${event.joined} joined`;
  addLine(words, { className: "event" });
}

join.addEventListener("submit", (event) => {
  event.preventDefault();
  const name = document.getElementById("name").value;
  join.hidden = true;
  document.getElementById("room").hidden = false;
  const path = `${join.dataset.socket}?name=${encodeURIComponent(name)}`;
  const socket = connect(path, { onMessage: show, onState: showState });
  onSubmit((text) => socket.send(text));
  document.getElementById("message").focus();
});
