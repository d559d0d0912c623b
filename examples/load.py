"""Load averages that update by themselves, in every page that is open.

    gunicorn -k flask_sockets2.worker examples.load:app

It is the program of the article "Dynamically Update Your Flask Web Pages Using Turbo-Flask". That
began a thread in `before_first_request`, which Flask has not any more, and which was one thread in
each worker; `@turbo.every(5)` goes on after an error, and runs in one worker of all:

    SOCKETS_BROKER_URL=redis://localhost:6379/0 \\
        gunicorn -k flask_sockets2.worker --workers 4 examples.load:app

turbo.js comes from the installed package, else from a CDN.
"""

import os
from datetime import UTC, datetime
from random import Random

from flask import Flask, render_template

from flask_sockets2 import Turbo

app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
turbo = Turbo(app)
chance = Random()


@app.route("/")
def index():
    return render_template("load.html")


@app.route("/about")
def about():
    return render_template("load_about.html")


@app.context_processor
def inject_load():
    try:
        loads = [*os.getloadavg()]
    except (AttributeError, OSError):  # Windows has none
        loads = [2 * chance.random() for _ in range(3)]
    return {
        "loads": dict(zip((1, 5, 15), loads, strict=True)),
        "cores": os.cpu_count() or 1,
        "now": datetime.now(UTC),
    }


@turbo.every(5)
def update_load():
    box = render_template("_load.html")
    turbo.push(turbo.replace(box, "load"))
