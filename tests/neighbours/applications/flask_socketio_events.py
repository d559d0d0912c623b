"""Flask-SocketIO beside this package, with the asynchronous mode of MODE."""

import os

from flask import Flask
from flask_socketio import SocketIO, emit

from tests.neighbours.parts import add_parts

app = Flask(__name__)
if os.environ.get("FIRST"):
    sockets, turbo, sse = add_parts(app)
socketio = SocketIO(app, async_mode=os.environ["MODE"])
if not os.environ.get("FIRST"):
    sockets, turbo, sse = add_parts(app)


@socketio.on("shout")
def shout(text):
    emit("heard", text.upper())


@app.post("/emit")
def emit_to_all():
    socketio.emit("news", "to all")
    return "emitted"


@sockets.route("/relay")
def relay(ws):
    while (message := ws.receive()) is not None:
        socketio.emit("news", message)
        ws.send("relayed")
