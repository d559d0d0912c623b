"""Notifications: a script, a cron job or a Celery task publishes, and all open pages show them.

    SOCKETS_BROKER_URL=redis://localhost:6379/0 \\
        gunicorn -k flask_sockets2.worker --workers 2 examples.notify:app

Open http://127.0.0.1:8000. In another terminal, with the same Python environment, run

    export SOCKETS_BROKER_URL=redis://localhost:6379/0
    python -m examples.notify_script "Lunch is ready"
    python -m examples.notify_script "Backup" --progress

or, without a script,

    flask --app examples.notify sockets publish notify:all --json '{"id": "1", "title": "Hello"}'

`SOCKETS_BROKER_URL=redis://localhost:6379/0 make demo` has the packages in .venv, and its page
names .venv/bin/python. Without SOCKETS_BROKER_URL all messages stay in one process: the button of
the page works, and the script does not.
"""

import os
import re
import secrets
import shlex
import sys

from flask import Blueprint, Flask, current_app, redirect, render_template, request, url_for

from examples.same_origin import refuse_other_origins
from flask_sockets2 import Sockets

CHANNEL = "notify:all"

pages = Blueprint("notify", __name__)
pages.before_request(refuse_other_origins)
sockets = Sockets()


def commands():
    """Return the lines to type into a terminal, none if a script cannot reach this process."""
    url = current_app.config["SOCKETS_BROKER_URL"]
    if url == "memory://":
        return []
    python = os.path.relpath(sys.executable)
    python = shlex.quote(sys.executable if python.startswith("..") else python)
    return [
        # Hide a password: it can be before the @ or in the query.
        f"export SOCKETS_BROKER_URL={shlex.quote(re.sub('//.*@', '//…@', url).partition('?')[0])}",
        f'{python} -m examples.notify_script "Lunch is ready"',
        f"{python} -m examples.notify_script Backup --progress",
    ]


@pages.route("/notify")
def page():
    # The page gets every message after this position, even before its script connects.
    position = sockets.position(CHANNEL)
    html = render_template("notify.html", position=position, commands=commands())
    # A cached page would contain an old position.
    return html, {"Cache-Control": "no-store"}


@pages.post("/notify")
def test():
    sockets.publish(CHANNEL, {"id": secrets.token_hex(8), "title": "It works", "text": "Hello!"})
    return "", 204


# A slow page needs only the newest state of each notification.
@sockets.route("/notify", slow_client="coalesce")
def notifications(ws):
    ws.subscribe(CHANNEL, request.args.get("since"), envelope=True)
    # The handler returns. The connection stays open, without a greenlet.


app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
app.register_blueprint(pages)
sockets.init_app(app)


@app.route("/")
def index():
    return redirect(url_for("notify.page"))
