import { follow } from "./events.js";
import { showState } from "./page.js";

const job = document.getElementById("job");
const bar = document.getElementById("bar");
const percent = document.getElementById("percent");
const words = document.getElementById("words");

const ENDS = { done: "done", failed: "failed" };

const stream = follow(job.dataset.stream, {
  types: {
    progress({ state, value, total, text }) {
      job.dataset.state = state;
      bar.max = total;
      bar.value = value;
      percent.textContent = `${Math.floor((100 * value) / total)} %`;
      words.textContent = state === "running" ? text || "it begins" : `${ENDS[state]}: ${text}`;
      if (state in ENDS) {
        stream.close("ended");
      }
    },
  },
  onGap() {
    words.textContent = "Nothing is known of this job any more.";
  },
  onState: showState,
});
