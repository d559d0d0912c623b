"""All examples that have a page, in one application, with a page that leads to them: `make demo`.

    gunicorn -k flask_sockets2.worker examples.demo:app

With SOCKETS_BROKER_URL=redis://localhost:6379/0 scripts can publish to it, too.
"""

import os

from flask import Flask, render_template
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from examples import chat, echo, hints, load, log, notify, orders, progress, todo

app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")

for example in (echo, chat, notify):
    app.register_blueprint(example.pages)
    example.sockets.init_app(app)

# The others stay applications of their own, each below a prefix.
app.wsgi_app = DispatcherMiddleware(
    app.wsgi_app,
    {
        "/load": load.app,
        "/todo": todo.app,
        "/orders": orders.app,
        "/log": log.app,
        "/progress": progress.app,
        "/hints": hints.app,
    },
)


@app.route("/")
def index():
    shared = app.config["SOCKETS_BROKER_URL"] != "memory://"
    return render_template("index.html", shared=shared)
