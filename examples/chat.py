"""A chat with rooms: what one says reaches all who are in the room, in whichever worker they are.

    gunicorn -k flask_sockets2.worker examples.chat:app

Several workers need a Redis or Valkey server between them (pip install "flask-sockets2[redis]"):

    SOCKETS_BROKER_URL=redis://localhost:6379/0 \\
        gunicorn -k flask_sockets2.worker --workers 4 examples.chat:app

Nothing that was said gets lost when a page is loaded again, a network fails or a worker is killed:
the browser comes back with the last position that it saw, and sends again what it has not seen
return. Everybody may choose any name here; `examples/login.py` shows how to know who it is.
"""

import json
import os
import re
import time

from flask import Blueprint, Flask, abort, redirect, render_template, request, url_for

from flask_sockets2 import Sockets

ROOMS = ("lobby", "kitchen", "garden")  # offered by the page; others are made by going there
LONGEST_NAME = 30  # characters
LONGEST_TEXT = 1000

pages = Blueprint("chat", __name__)
sockets = Sockets()


def channel_of(room):
    """A room's name comes from its user: look at it before it becomes a channel's."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,29}", room):
        abort(404, "a room's name is made of up to 30 small letters, digits and hyphens")
    return f"chat:{room}"


def name_of(given):
    name = " ".join(given.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        abort(400, f"a name has 1 to {LONGEST_NAME} characters")
    return name


def said(message):
    """Return the id and the text of what a browser sent.

    :raises ValueError: when it is something else.
    """
    try:
        fields = json.loads(message)
        number, text = fields["id"], fields["text"].strip()
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ValueError("expected an object with id and text") from exc
    if not isinstance(number, str) or not 0 < len(number) <= 40:
        raise ValueError("expected an id of 1 to 40 characters")
    if not 0 < len(text) <= LONGEST_TEXT:
        raise ValueError(f"expected a text of 1 to {LONGEST_TEXT} characters")
    return number, text


@pages.route("/chat")
def start():
    return redirect(url_for("chat.page", room=ROOMS[0]))


@pages.route("/chat/<room>")
def page(room):
    channel_of(room)
    rooms = [*ROOMS, *({room} - set(ROOMS))]
    return render_template(
        "chat.html", room=room, rooms=rooms, longest_name=LONGEST_NAME, longest_text=LONGEST_TEXT
    )


# accept=False: a name that is none is answered with 400 before there is a WebSocket.
@sockets.route("/chat/<room>", accept=False, max_message_size=8192)
def chat(ws, room):
    channel = channel_of(room)
    name = name_of(request.args.get("name", ""))
    # Who comes for the first time gets the room's last messages, who comes back what it missed.
    since = request.args.get("since", "start")
    ws.subscribe(channel, since, envelope=True, presence=True, identity=name)
    for message in ws:
        try:
            number, text = said(message)
        except ValueError as exc:
            ws.close(1008, str(exc))
            return
        sockets.publish(channel, {"id": number, "name": name, "text": text, "at": time.time()})


app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
app.register_blueprint(pages)
sockets.init_app(app)


@app.route("/")
def index():
    return redirect(url_for("chat.start"))
