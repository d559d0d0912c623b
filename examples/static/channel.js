// A channel: a WebSocket with envelopes that resumes at its last position after a reconnect.

import { connect } from "./socket.js";

/**
 * Follow a channel.
 *
 * @param {string} path of its WebSocket
 * @param {object} handlers
 *   since: a position, or "start" for the whole history
 *   onMessage(data): the published data
 *   onGap(): messages are missing; the remaining history follows, with messages already seen
 *   onPresence(envelope): the events presence, join and leave; optional
 *   onState(state, words): as in connect()
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
