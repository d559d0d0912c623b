"""A live log: every open page shows the log messages of a program as they are written.

    gunicorn -k flask_sockets2.worker examples.log:app

There are three loggers with a channel each. A page chooses channels, follows them over one stream,
and begins with the last lines of each. The program logs as usual: a logging handler publishes.

To run several workers, set SOCKETS_BROKER_URL=redis://localhost:6379/0, and the same SECRET_KEY for
all workers. Each page then shows the log messages of all workers.
"""

import itertools
import logging
import os
import secrets
import threading
import time
from random import Random

from flask import Flask, redirect, render_template, request, url_for

from examples.same_origin import refuse_other_origins
from flask_sockets2 import BrokerError
from flask_sockets2.sse import sse

PARTS = ("shop", "kitchen", "courier")
LAST = 20  # lines of each channel that a new page shows
LONGEST = 200  # characters in a visitor's line

# what happens to an order, in this sequence
LINES = (
    ("shop", logging.INFO, "order {n}: two Margherita, one Funghi"),
    ("shop", logging.WARNING, "order {n}: the card was declined, asking again"),
    ("kitchen", logging.ERROR, "order {n}: no mozzarella left"),
    ("kitchen", logging.INFO, "order {n} is in the oven, 385 °C"),
    ("kitchen", logging.INFO, "order {n} is done"),
    ("courier", logging.INFO, "order {n} has left, 2.4 km to go"),
    ("courier", logging.WARNING, "order {n}: nobody opens the door"),
    ("courier", logging.INFO, "order {n} was handed over"),
)

app = Flask(__name__)
# The key signs the addresses of streams. Several workers need the same key.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
app.register_blueprint(sse, url_prefix="/stream")
app.before_request(refuse_other_origins)


class Publishing(logging.Handler):
    """Publish each record to the channel of its logger."""

    def emit(self, record):
        line = {"time": record.created, "level": record.levelname, "text": record.getMessage()}
        try:
            with app.app_context():
                sse.publish({"part": record.name, **line}, channel=f"log:{record.name}")
        except BrokerError:
            self.handleError(record)


loggers = {part: logging.getLogger(part) for part in PARTS}
for logger in loggers.values():
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(Publishing())


def work():
    """Log as a pizzeria would."""
    chance = Random()
    for number in itertools.count(100):
        for part, level, text in sorted(chance.sample(LINES, 5), key=LINES.index):
            loggers[part].log(level, text.format(n=number))
            time.sleep(chance.uniform(0.5, 1.5))


started = threading.Lock()


@app.before_request
def start_work():
    # Not at import: gunicorn's parent process imports the program, too.
    if started.acquire(blocking=False):
        threading.Thread(target=work, daemon=True).start()


@app.get("/")
def index():
    chosen = [part for part in request.args.getlist("part") if part in PARTS] or list(PARTS)
    stream = sse.url(*(f"log:{part}" for part in chosen), last=LAST)
    html = render_template("log.html", parts=PARTS, chosen=chosen, stream=stream)
    # A cached page would contain an old address.
    return html, {"Cache-Control": "no-store"}


@app.post("/")
def write():
    text = request.form.get("text", "").strip()[:LONGEST]
    if text:
        loggers["shop"].warning("a visitor: %s", text)
    return redirect(url_for("index"), 303)
