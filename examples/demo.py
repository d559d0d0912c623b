"""All examples with a page in one application, with a start page: `make demo`.

    gunicorn -k flask_sockets2.worker examples.demo:app

If you set SOCKETS_BROKER_URL=redis://localhost:6379/0, scripts can publish to the pages, too.
"""

import os
import secrets
from pathlib import Path

from flask import Flask, abort, current_app, render_template, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from examples import chat, echo, hints, load, log, login, notify, orders, progress, todo

app = Flask(__name__)
# The examples share the session cookie, so they need the same key.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")

PAGES = {"echo": echo, "chat": chat, "notify": notify}  # blueprints
# applications of their own, each below a prefix
APPS = {
    "load": load,
    "todo": todo,
    "orders": orders,
    "log": log,
    "progress": progress,
    "login": login,
    "hints": hints,
}
SOURCES = {name: Path(__file__).with_name(f"{name}.py") for name in [*PAGES, *APPS, "demo"]}


def add_links():
    """Give the layout the links to the start page and to the source of this example."""
    # There is no request while a part is rendered for a broadcast.
    home = request.environ.get("examples.home") if request else None
    if home is None:
        return {}
    name = request.blueprint or current_app.import_name.removeprefix("examples.")
    return {"home": home, "source": f"{home}source/{name}"}


app.context_processor(add_links)
for example in PAGES.values():
    app.register_blueprint(example.pages)
    example.sockets.init_app(app)
for example in APPS.values():
    example.app.secret_key = app.secret_key
    example.app.context_processor(add_links)

dispatch = DispatcherMiddleware(
    app.wsgi_app, {f"/{name}": example.app for name, example in APPS.items()}
)


def wsgi_app(environ, start_response):
    environ["examples.home"] = environ["SCRIPT_NAME"] + "/"
    return dispatch(environ, start_response)


app.wsgi_app = wsgi_app


@app.route("/")
def index():
    shared = app.config["SOCKETS_BROKER_URL"] != "memory://"
    return render_template("index.html", shared=shared)


@app.route("/source/<name>")
def source(name):
    if name not in SOURCES:
        abort(404)
    return render_template("source.html", name=name, text=SOURCES[name].read_text())
