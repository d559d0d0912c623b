"""An application with streams for tests over real servers, and what a test does with it."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests.clients import http
from tests.event_client import EventClient
from tests.processes import Server, wait_until
from tests.wire_client import TIMEOUT

SOURCE = """
import os
import time

from flask import Flask, request
from flask_sockets2.application.state import state_of
from flask_sockets2.sse import sse

app = Flask(__name__)
app.config["SSE_OPEN_CHANNELS"] = True
app.config["SSE_RETRY"] = 300
app.config.from_prefixed_env()
app.register_blueprint(sse, url_prefix="/stream")


@app.post("/publish/<channel>")
def publish(channel):
    return str(sse.publish(request.get_data(as_text=True), channel=channel, **request.args))


@app.post("/fill/<channel>")
def fill(channel):
    # Each for itself, so that what is kept back is seen between two.
    for _ in range(100):
        sse.publish("x" * 100_000, channel=channel)
        time.sleep(0.005)
    return ""


@app.get("/state/<channel>")
def state(channel):
    state = state_of()
    return {
        "subscribers": state.channels.here().get(f"sse:{channel}", 0),
        "streams": len(state.streams),
        "process": os.getpid(),
    }


@app.after_request
def tell_process(response):
    response.headers["X-Process"] = str(os.getpid())
    return response


PAGE = '''
<!doctype html>
<html lang="en">
<head><title>Events</title></head>
<body><p id="state"></p><ol id="log"></ol>
<script>
const query = new URLSearchParams(location.search);
const source = new EventSource(query.get("stream") ?? "/stream");
window.events = [];
for (const type of ["message", "greeting", "gap", "progress"]) {
  source.addEventListener(type, (event) => {
    events.push([type, event.data, event.lastEventId]);
  });
}
window.opened = 0;
source.onopen = () => { opened += 1; };
</script>
</body>
</html>
'''


@app.get("/page")
def page():
    return PAGE


@app.get("/favicon.ico")
def favicon():
    return "", 204
"""


class Site:
    """A server of the application.

    :param port: of a proxy to it; by default its own.
    """

    def __init__(self, server: Server, port: int = 0) -> None:
        self.server = server
        self.port = port or server.port

    def open(self, query: str = "", **how: Any) -> EventClient:
        return EventClient(self.port, f"/stream{query}", **how)

    def publish(self, text: str, channel: str = "sse", query: str = "") -> int:
        """Publish, and return how many listened."""
        url = self.server.url(f"/publish/{channel}{query}")
        status, body, _ = http(url, data=text.encode())
        assert status == 200, body
        return int(body)

    def state(self, channel: str = "sse") -> dict[str, Any]:
        """What a process of the server knows."""
        found: dict[str, Any] = json.loads(http(self.server.url(f"/state/{channel}"))[1])
        return found

    def wait_for_subscribers(self, number: int, timeout: float = TIMEOUT) -> None:
        what = f"{number} subscribers"
        wait_until(lambda: self.state()["subscribers"] == number, what, timeout)


def on_each_worker(server: Server, number: int) -> dict[int, EventClient]:
    """Open a stream in each worker; those that have one are stopped while the next is opened."""
    clients: dict[int, EventClient] = {}
    try:
        for _ in range(number):
            client = EventClient(server.port, "/stream").opened()
            pid = int(client.headers["x-process"])
            assert pid not in clients
            clients[pid] = client
            os.kill(pid, signal.SIGSTOP)
    finally:
        for pid in clients:
            os.kill(pid, signal.SIGCONT)
    return clients
