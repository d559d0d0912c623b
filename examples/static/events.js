// A stream of events that goes on after every failure.
//
// An EventSource connects again after a lost connection. It stops for good at an answer such as
// 502, of a proxy whose server restarts. This script then opens another one, and resumes.
//
// Over HTTP/1.1 a browser opens six connections to a server, all tabs together: the seventh tab with
// a stream would wait for ever. So a hidden tab closes its stream, and resumes when it is shown.

const FIRST_PAUSE = 2000; // milliseconds, half more or less
const LONGEST_PAUSE = 60000;

/**
 * Follow a stream.
 *
 * @param {string} address of the stream, from sse.url()
 * @param {object} handlers by the type of the event; without one, a gap loads the page again
 * @param {function(string)} onState gets "open" and "lost"
 * @param {{hidden: boolean}} options hidden: true keeps the stream open while the tab is hidden
 * @returns {{address: string, close: function()}} address: with the id of the last event
 */
export function follow(address, handlers, onState = () => {}, { hidden = false } = {}) {
  const url = new URL(address, location.href); // not where a <base> leads
  let pause = FIRST_PAUSE;
  let closed = false;
  let source; // undefined while the tab is hidden
  let timer;

  function open() {
    source = new EventSource(url);
    for (const [type, handle] of Object.entries({ gap: reload, ...handlers })) {
      source.addEventListener(type, (event) => {
        url.searchParams.set("lastEventId", event.lastEventId);
        handle(event);
      });
    }
    source.onopen = () => {
      pause = FIRST_PAUSE;
      onState("open");
    };
    source.onerror = () => {
      onState("lost");
      if (source.readyState === EventSource.CLOSED) { // else the browser connects again
        timer = setTimeout(again, pause * (0.5 + Math.random()));
        pause = Math.min(2 * pause, LONGEST_PAUSE);
      }
    };
  }

  async function again() {
    // An EventSource hides the status of an answer, so ask for it.
    const headers = { Accept: "text/event-stream" };
    const request = { method: "HEAD", redirect: "manual", headers };
    const failed = source;
    const answer = await fetch(url, request).catch(() => null); // null: the network is away
    if (closed || source !== failed) return;
    if (answer?.type === "opaqueredirect" || [401, 403, 410].includes(answer?.status)) {
      reload(); // the address is of no more use, or the user has to log in
    } else {
      open();
    }
  }

  function rest() {
    clearTimeout(timer);
    source?.close();
    source = undefined;
  }

  function look() {
    if (document.hidden && !hidden) {
      rest();
    } else if (source === undefined) {
      open();
    }
  }

  look();
  document.addEventListener("visibilitychange", look);
  return {
    get address() {
      return url.href;
    },
    close() {
      closed = true;
      document.removeEventListener("visibilitychange", look);
      rest();
    },
  };
}

/** Load the page again, once a minute at most: a cache may answer with the same page. */
export function reload() {
  const last = Number(sessionStorage.getItem("reloaded"));
  setTimeout(() => {
    sessionStorage.setItem("reloaded", Date.now());
    location.reload();
  }, last + 60000 - Date.now());
}
