import { addLine, onSubmit, showState } from "./page.js";
import { connect } from "./socket.js";

const login = document.getElementById("login");
const error = document.getElementById("error");
const room = document.getElementById("room");
const logout = document.getElementById("logout");
let socket;

login.addEventListener("submit", async (event) => {
  event.preventDefault();
  const response = await fetch(login.action, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(Object.fromEntries(new FormData(login))),
  });
  const answer = await response.json();
  error.textContent = answer.error ?? "";
  if (!response.ok) {
    return;
  }
  login.hidden = true;
  room.hidden = false;
  // The handshake sends the cookie that the response has set.
  socket = connect(login.dataset.socket, { onMessage: addLine, onState: showState });
});

// Enabled only now: without this script the browser would submit the form itself.
login.querySelector("button").disabled = false;

onSubmit((text) => socket.send(text));

// The server closes the WebSocket of a user who has logged out, in each window.
logout.addEventListener("submit", async (event) => {
  event.preventDefault();
  await fetch(logout.action, { method: "POST" });
  room.hidden = true;
  login.hidden = false;
});
