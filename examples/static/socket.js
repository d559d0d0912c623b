// A WebSocket that comes back: after a loss it connects again, at first soon, then more and
// more seldom, and each time by chance a little earlier or later, so that a restarted server
// does not meet all of its browsers at once.

const FIRST_DELAY = 500; // milliseconds
const LONGEST_DELAY = 15000;

/**
 * Open a WebSocket at a path of this site and keep it open.
 *
 * @param {string} path such as "/chat?name=Ada"
 * @param {{onMessage: function(string), onState: function(string, string)}} handlers
 *   onState gets "connecting", "open" or "waiting", and words for a human
 * @returns {{send: function(string), close: function()}}
 */
export function connect(path, { onMessage, onState }) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws"); // https: becomes wss:
  let delay = FIRST_DELAY;
  let timer;
  let socket;

  function open() {
    clearTimeout(timer);
    onState("connecting", "connecting");
    socket = new WebSocket(url);
    socket.onopen = () => {
      delay = FIRST_DELAY;
      onState("open", "connected");
    };
    socket.onmessage = (event) => onMessage(event.data);
    socket.onclose = () => {
      const wait = delay * (0.5 + Math.random() / 2);
      delay = Math.min(delay * 2, LONGEST_DELAY);
      timer = setTimeout(open, wait);
      onState("waiting", `lost; next try in ${(wait / 1000).toFixed(1)} s`);
    };
  }

  open();
  return {
    send: (text) => socket.send(text),
    close() {
      clearTimeout(timer);
      socket.onclose = null;
      socket.close();
    },
  };
}
