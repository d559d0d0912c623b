"""Flask-HTMX: partials of a page, and its extensions ws and sse."""

from flask import Flask, render_template_string
from flask_htmx import HTMX

from tests.neighbours.parts import add_parts

app = Flask(__name__)
htmx = HTMX(app)
sockets, turbo, sse = add_parts(app)


@app.get("/list")
def list_():
    return "<li>part</li>" if htmx else "<ol><li>part</li></ol>"


@sockets.route("/chat")
def chat(ws):
    """htmx sends a form as JSON, and swaps what comes by its id."""
    import json

    while (message := ws.receive()) is not None:
        values = json.loads(message)
        ws.send(render_template_string('<p id="chat">{{ text }}</p>', text=values["text"]))
