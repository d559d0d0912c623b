// A WebSocket that reconnects. The delay doubles with each attempt, up to a limit. A random part
// keeps the browsers of a restarted server from reconnecting at the same moment.

const FIRST_DELAY = 500; // milliseconds
const LONGEST_DELAY = 15000;
const STABLE = 5000; // after this time open, the next delay is the first one again
const REFUSED = 1008; // the server rejected a message of this page: do not reconnect

/**
 * Open a WebSocket to a path of this site, and keep it open.
 *
 * @param {string|function(): string} path such as "/echo"; a function is called for each attempt
 * @param {{onMessage: function(string), onState: function(string, string)}} handlers
 *   onState gets "connecting", "open", "waiting" or "closed", and words for a human
 * @returns {{send: function(string), reopen: function()}}
 */
export function connect(path, { onMessage, onState }) {
  let delay = FIRST_DELAY;
  let openedAt;
  let reopenedAt = -Infinity;
  let timer;
  let socket;

  function open() {
    clearTimeout(timer);
    timer = undefined;
    openedAt = Infinity;
    const url = new URL(typeof path === "function" ? path() : path, location.href);
    url.protocol = url.protocol.replace("http", "ws"); // https: becomes wss:
    onState("connecting", "connecting");
    socket = new WebSocket(url);
    socket.onopen = () => {
      openedAt = performance.now();
      onState("open", "connected");
    };
    socket.onmessage = (event) => onMessage(event.data);
    socket.onclose = (event) => {
      if (event.code === REFUSED) {
        onState("closed", `refused: ${event.reason}`);
      } else {
        wait();
      }
    };
  }

  function wait() {
    if (performance.now() - openedAt > STABLE) {
      delay = FIRST_DELAY;
    }
    const jittered = delay * (0.5 + Math.random() / 2);
    delay = Math.min(delay * 2, LONGEST_DELAY);
    timer = setTimeout(open, jittered);
    const next = `reconnecting in ${(jittered / 1000).toFixed(1)} s`;
    onState("waiting", navigator.onLine ? next : "offline");
  }

  // The network is back: reconnect without waiting for the timer.
  window.addEventListener("online", () => {
    if (timer !== undefined) {
      open();
    }
  });

  open();
  return {
    send: (text) => socket.send(text),
    // With a delay, since many browsers may reopen at once, or one in a loop.
    reopen() {
      socket.onmessage = socket.onclose = null;
      socket.close();
      if (performance.now() - reopenedAt > 2 * LONGEST_DELAY) {
        delay = FIRST_DELAY; // the server is reachable again
      }
      reopenedAt = performance.now();
      wait();
    },
  };
}
