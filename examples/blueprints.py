"""Pages in one blueprint, WebSockets in another, each with its own prefix.

gunicorn -k flask_sockets2.worker examples.blueprints:app
"""

# Patch before any other import. Without the patch time.sleep() or a database driver in one handler
# stops all others.
from gevent import monkey

monkey.patch_all()

from flask import Blueprint, Flask, url_for

from flask_sockets2 import Sockets, WebSocketServer

html = Blueprint("html", __name__)
live = Blueprint("live", __name__)


@html.route("/")
def hello():
    return f"The echo is at {url_for('live.echo')}\n"


@live.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


@live.route("/<name>/shout")
def shout(ws, name):
    for message in ws:
        ws.send(f"{name}: {message.upper()}")


app = Flask(__name__)
sockets = Sockets(app)

app.register_blueprint(html)
sockets.register_blueprint(live, url_prefix="/live")


if __name__ == "__main__":
    WebSocketServer(("127.0.0.1", 5000), app).serve_forever()
