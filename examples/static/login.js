import { addLine, onSubmit, showState } from "./page.js";
import { connect } from "./socket.js";

const login = document.getElementById("login");
const error = document.getElementById("error");

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
  document.getElementById("room").hidden = false;
  // The cookie that the answer has set goes with this handshake.
  const socket = connect(login.dataset.socket, { onMessage: addLine, onState: showState });
  onSubmit((text) => socket.send(text));
});
