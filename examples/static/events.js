// A stream of events that stays: the browser comes back by itself after a loss. After a refusal,
// 503 for one, it does not, and nobody is told why; so it is tried again, and at last the page is
// loaded again, whose address of the stream is new.

const PAUSE = 4000; // milliseconds, about
const MOST_REFUSALS = 3;

/**
 * Follow a stream.
 *
 * @param {string} address of the stream
 * @param {object} handlers
 *   types: of events, each with a function that gets the data
 *   onGap(): events are lost
 *   onState(state, words): "connecting", "open", "waiting" or "closed", and words for a human
 * @returns {{close: function(string)}} with words for a human
 */
export function follow(address, { types, onGap, onState }) {
  const url = new URL(address, location.href);
  let refusals = 0;
  let source;
  let timer;

  function open() {
    source = new EventSource(url);
    source.onopen = () => {
      refusals = 0;
      onState("open", "live");
    };
    source.onerror = () => {
      onState("waiting", navigator.onLine ? "lost; it comes back" : "offline");
      if (source.readyState === EventSource.CLOSED) {
        wait();
      }
    };
    for (const [type, onData] of Object.entries({ ...types, gap: onGap })) {
      source.addEventListener(type, (event) => {
        url.searchParams.set("last_event_id", event.lastEventId);
        onData(JSON.parse(event.data));
      });
    }
  }

  function wait() {
    refusals += 1;
    const next = refusals < MOST_REFUSALS ? open : () => location.reload();
    timer = setTimeout(next, PAUSE * (0.5 + Math.random()));
  }

  open();
  return {
    close(words = "closed") {
      clearTimeout(timer);
      source.close();
      onState("closed", words);
    },
  };
}
