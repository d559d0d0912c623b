"""Load averages that update by themselves in every open page.

    gunicorn -k flask_sockets2.worker examples.load:app

The example of the article "Dynamically Update Your Flask Web Pages Using Turbo-Flask". The article
starts a thread in `before_first_request`, which Flask has removed. `@turbo.every(5)` continues
after an error, and runs in only one of several workers:

    SOCKETS_BROKER_URL=redis://localhost:6379/0 \\
        gunicorn -k flask_sockets2.worker --workers 4 examples.load:app

turbo.js comes from the package if the package contains it, and from a CDN otherwise.
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
    except (AttributeError, OSError):  # Windows has no load average
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
