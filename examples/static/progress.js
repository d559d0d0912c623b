import { follow } from "./events.js";
import { showState, showStream } from "./page.js";

const job = document.getElementById("job");
const bar = document.getElementById("bar");
const percent = document.getElementById("percent");
const words = document.getElementById("words");

const ENDS = { done: "done", failed: "failed" };

const handlers = {
  progress(event) {
    const { state, value, total, text } = JSON.parse(event.data);
    showStream("open");
    job.dataset.state = state;
    bar.max = total;
    bar.value = value;
    percent.textContent = `${Math.floor((100 * value) / total)} %`;
    words.textContent = state === "running" ? text || "starting" : `${ENDS[state]}: ${text}`;
    if (state in ENDS) {
      stream.close();
      showState("closed", "ended");
    }
  },
  gap() {
    // The server has restarted, and its job has ended. A job in another process may still run.
    job.dataset.state = "unknown";
    bar.removeAttribute("value");
    percent.textContent = "–";
    words.textContent = "The events of this job are gone.";
    showState("unknown", "unknown");
  },
};
const stream = follow(job.dataset.stream, handlers, showStream);
