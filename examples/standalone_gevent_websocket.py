"""The same under gevent-websocket's handler: python examples/standalone_gevent_websocket.py

The handler gets gevent-websocket's own object, which cannot be iterated over. So the handler calls
receive() for each message. None means that the browser has disconnected.
"""

# Patch before any other import. Without the patch time.sleep() or a database driver in one handler
# stops all others.
from gevent import monkey

monkey.patch_all()

from flask import Flask
from gevent import pywsgi
from geventwebsocket.handler import WebSocketHandler

from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws):
    while not ws.closed:
        message = ws.receive()
        if message is not None:
            ws.send(message)


@app.route("/")
def hello():
    return "Hello! The echo is at /echo.\n"


if __name__ == "__main__":
    server = pywsgi.WSGIServer(("127.0.0.1", 5000), app, handler_class=WebSocketHandler)
    server.serve_forever()
