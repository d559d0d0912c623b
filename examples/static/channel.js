// A channel: a WebSocket whose messages come in envelopes, and which goes on where it was.

import { connect } from "./socket.js";

/**
 * Follow a channel.
 *
 * @param {string} path of its WebSocket
 * @param {object} handlers
 *   since: where to begin, a position or "start"
 *   onMessage(data): what was published
 *   onGap(): messages are lost; what is left of the history comes next, seen or not
 *   onPresence(envelope): of the events presence, join and leave; optional
 *   onState(state, words): as that of connect()
 */
export function follow(path, { since, onMessage, onGap, onPresence, onState }) {
  let position = since;

  function address() {
    const url = new URL(path, location.href);
    url.searchParams.set("since", position);
    return url.href;
  }

  const socket = connect(address, {
    onState,
    onMessage(text) {
      const envelope = JSON.parse(text);
      if (envelope.event === "gap") {
        position = "start";
        onGap();
        socket.reopen();
        return;
      }
      position = envelope.position ?? position;
      if (envelope.event === undefined) {
        onMessage(envelope.data);
      } else {
        onPresence?.(envelope);
      }
    },
  });
  return socket;
}
