"""A program that starts its own server: python examples/standalone.py"""

# Patch before any other import. Without the patch time.sleep() or a database driver in one handler
# stops all others.
from gevent import monkey

monkey.patch_all()

from flask import Flask

from flask_sockets2 import Sockets, WebSocketServer

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


@app.route("/")
def hello():
    return "Hello! The echo is at /echo.\n"


if __name__ == "__main__":
    WebSocketServer(("127.0.0.1", 5000), app).serve_forever()
