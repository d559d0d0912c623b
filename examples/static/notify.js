import { follow } from "./channel.js";
import { showState } from "./page.js";

const list = document.getElementById("notifications");
const count = document.getElementById("count");
const cards = new Map(); // id -> card

// Insert texts as textContent, never as HTML.
function show({ id, title, text, percent }) {
  let card = cards.get(id);
  if (!card) {
    card = document.getElementById("card").content.firstElementChild.cloneNode(true);
    card.querySelector("time").textContent = new Date().toLocaleTimeString();
    cards.set(id, card);
    list.prepend(card);
  }
  card.querySelector("b").textContent = title;
  card.querySelector("p").textContent = text ?? "";
  const bar = card.querySelector("progress");
  bar.hidden = percent === undefined;
  bar.value = percent ?? 0;
  count.value = cards.size;
}

follow(list.dataset.socket, {
  since: list.dataset.position,
  onMessage: show,
  onGap() {}, // the remaining history follows, with the newest state of each
  onState: showState,
});

document.getElementById("test").addEventListener("submit", (event) => {
  event.preventDefault();
  fetch(event.target.action, { method: "POST" });
});
