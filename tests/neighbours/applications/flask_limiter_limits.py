"""Flask-Limiter: a limit for all routes, and one for a WebSocket."""

from flask import Flask, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from tests.neighbours.parts import add_parts

app = Flask(__name__)
limiter = Limiter(
    get_remote_address,
    app=app,
    default_limits=["3 per hour"],
    storage_uri="memory://",
    headers_enabled=True,
)
sockets, turbo, sse = add_parts(app)


@limiter.request_filter
def of_turbo():
    return request.endpoint.startswith("flask_sockets2")


@app.get("/limited/page")
@limiter.limit("2 per hour")
def limited_page():
    return "a page"


@sockets.route("/limited")
@limiter.limit("2 per hour")
def limited(ws):
    ws.send("welcome")


@sockets.route("/limited/refused", accept=False)
@limiter.limit("2 per hour")
def refused(ws):
    ws.send("welcome")


@app.get("/limited/events")
@limiter.limit("2 per hour")
def limited_events():
    return sse.stream()


@sockets.route("/default")
def default(ws):
    ws.send("welcome")


@sockets.route("/exempt")
@limiter.exempt
def exempt(ws):
    ws.send("welcome")
