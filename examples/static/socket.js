// A WebSocket that comes back: after a loss it connects again, at first soon, then more and
// more seldom, and each time by chance a little earlier or later, so that a restarted server
// does not meet all of its browsers at once.

const FIRST_DELAY = 500; // milliseconds
const LONGEST_DELAY = 15000;
const STABLE = 5000; // after having been open for so long, a loss begins with the first delay
const REFUSED = 1008; // the server does not want what this page sends: trying again is in vain

/**
 * Open a WebSocket at a path of this site and keep it open.
 *
 * @param {string|function(): string} path such as "/echo"; a function is asked each time
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
    const next = `next try in ${(jittered / 1000).toFixed(1)} s`;
    onState("waiting", navigator.onLine ? `lost; ${next}` : "offline");
  }

  // The network is back: no need to wait until the timer's end.
  window.addEventListener("online", () => {
    if (timer !== undefined) {
      open();
    }
  });

  open();
  return {
    send: (text) => socket.send(text),
    // After a wait: many browsers may want it at once, and one whose reason stays wants it again.
    reopen() {
      socket.onmessage = socket.onclose = null;
      socket.close();
      if (performance.now() - reopenedAt > 2 * LONGEST_DELAY) {
        delay = FIRST_DELAY; // the server is there, however long it was away before
      }
      reopenedAt = performance.now();
      wait();
    },
  };
}
