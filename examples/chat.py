"""A chat with rooms: everyone in a room sees each message, in any worker.

    gunicorn -k flask_sockets2.worker examples.chat:app

Several workers need a Redis or Valkey server between them (pip install "flask-sockets2[redis]"):

    SOCKETS_BROKER_URL=redis://localhost:6379/0 \\
        gunicorn -k flask_sockets2.worker --workers 4 examples.chat:app

After a reload, a network failure or a killed worker the page reconnects with its last position. It
receives the messages it missed, or shows that some are missing, and sends again each message of its
own that has not come back. The chat has no login: `examples/login.py` shows one.
"""

import json
import os
import re
import time

from flask import Blueprint, Flask, abort, redirect, render_template, request, url_for

from flask_sockets2 import Sockets

ROOMS = ("lobby", "kitchen", "garden")  # linked by the page; others may be opened, too
LONGEST_NAME = 30  # characters
LONGEST_TEXT = 1000

pages = Blueprint("chat", __name__)
sockets = Sockets()


def channel_of(room):
    """Return the channel of a room. Anybody can type a room's name, so check the name first."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,29}", room):
        abort(404, "a room's name has at most 30 lowercase letters, digits and hyphens")
    return f"chat:{room}"


def name_of(given):
    name = " ".join(given.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        abort(400, f"a name has 1 to {LONGEST_NAME} characters")
    return name


def said(message):
    """Return the id and the text of a browser's message.

    :raises ValueError: if the message has another form.
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


# accept=False: an invalid name is refused with 400 before the handshake.
@sockets.route("/chat/<room>", accept=False, max_message_size=8192)
def chat(ws, room):
    channel = channel_of(room)
    name = name_of(request.args.get("name", ""))
    # A new page gets the room's last messages, a reconnecting page the messages it missed.
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
