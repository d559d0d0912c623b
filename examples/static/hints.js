// Draws a waterfall chart of this page's load, beside the last load of each other way in this tab.

const ways = document.getElementById("ways");
const here = ways.dataset.now;
const KEY = "hints";

function measure() {
  const [page] = performance.getEntriesByType("navigation");
  const style = performance
    .getEntriesByType("resource")
    .find((entry) => entry.name.includes("/slow.css"));
  const early = style.initiatorType === "early-hints";
  const told = Object.fromEntries(style.serverTiming.map((each) => [each.name, each.duration]));
  // A hinted stylesheet comes from the cache. The server says in Server-Timing when it was asked.
  const begun = early ? page.requestStart + told.asked : style.startTime;
  return {
    protocol: page.nextHopProtocol,
    interim: page.firstInterimResponseStart || 0,
    asked: page.requestStart,
    head: page.finalResponseHeadersStart || page.responseStart,
    end: page.responseEnd,
    style: [begun, early ? begun + told.made : style.responseEnd],
    early,
    loaded: page.loadEventStart,
  };
}

function bar(track, kind, from, to, scale) {
  const element = document.createElement("span");
  element.className = `bar ${kind}`;
  element.style.left = `${(100 * from) / scale}%`;
  if (to !== undefined) element.style.width = `${(100 * Math.max(0, to - from)) / scale}%`;
  track.append(element);
}

function draw(seen) {
  const scale = 1.02 * Math.max(1000, ...Object.values(seen).map((each) => each.loaded));
  for (const article of ways.querySelectorAll(".way")) {
    const load = seen[article.dataset.way];
    if (!load) continue;
    const [page, style] = ["page", "style"].map((name) =>
      article.querySelector(`[data-track=${name}]`),
    );
    bar(page, "wait", load.asked, load.head, scale);
    bar(page, "page", load.head, load.end, scale);
    if (load.interim) bar(page, "mark", load.interim, undefined, scale);
    bar(style, "style", ...load.style, scale);
    article.querySelector("output").value = `${Math.round(load.loaded)} ms`;
  }
}

function advice({ early, protocol }) {
  if (here !== "hinted") return "";
  if (early) return "The stylesheet arrived before the page was made.";
  if (!protocol.startsWith("h2")) {
    return "No 103 response was sent. Browsers accept it over HTTP/2, from a proxy that passes it.";
  }
  return "No 103 response arrived. Let the proxy send X-Early-Hints: 1 to the application.";
}

// The load event has no duration before it ends.
addEventListener("load", () => {
  setTimeout(() => {
    const seen = JSON.parse(sessionStorage.getItem(KEY) ?? "{}");
    seen[here] = measure();
    sessionStorage.setItem(KEY, JSON.stringify(seen));
    draw(seen);
    document.getElementById("protocol").textContent = seen[here].protocol;
    document.getElementById("advice").textContent = advice(seen[here]);
    document.documentElement.dataset.drawn = here;
  });
});
