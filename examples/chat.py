"""A chat: whatever one member says is sent to all of them.

    gunicorn -k flask_sockets2.worker examples.chat:app

The members are kept in this process, so it has to be the only one: `-w 1`, gunicorn's default.
"""

import contextlib
import json

from flask import Blueprint, Flask, redirect, render_template, request, url_for

from flask_sockets2 import Sockets, WebSocketError

pages = Blueprint("chat", __name__)
sockets_of_chat = Blueprint("chat_sockets", __name__)

members = set()


def broadcast(**event):
    text = json.dumps(event)
    # A copy: members come and go while a send waits for a slow one.
    for member in tuple(members):
        with contextlib.suppress(WebSocketError):
            member.send(text)


@pages.route("/chat")
def page():
    return render_template("chat.html")


@sockets_of_chat.route("/chat", max_message_size=4096)
def chat(ws):
    name = request.args.get("name", "").strip()[:30] or "somebody"
    members.add(ws)
    try:
        broadcast(joined=name, online=len(members))
        for message in ws:
            broadcast(name=name, text=str(message))
    finally:
        members.discard(ws)
        broadcast(left=name, online=len(members))


app = Flask(__name__)
app.register_blueprint(pages)
Sockets(app).register_blueprint(sockets_of_chat)


@app.route("/")
def index():
    return redirect(url_for("chat.page"))
