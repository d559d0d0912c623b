import { addLine, onSubmit, showState } from "./page.js";
import { connect } from "./socket.js";

const path = document.getElementById("form").dataset.socket;
let sentAt = []; // send times of the messages without an echo, oldest first

const socket = connect(path, {
  onMessage(text) {
    addLine(text, { aside: `${(performance.now() - sentAt.shift()).toFixed(1)} ms` });
  },
  onState(state, words) {
    if (state === "connecting") {
      sentAt = [];
    }
    showState(state, words);
  },
});

onSubmit((text) => {
  sentAt.push(performance.now());
  socket.send(text);
});
