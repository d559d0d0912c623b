"""A long job with a progress bar, which is right also after a reload and in every other window.

    gunicorn -k flask_sockets2.worker examples.progress:app

The job runs in a thread of the worker here. In a Celery task or a script it is the same but for one
line: `with Progress("redis://localhost:6379/0", channel, total=…) as bar`.

The page asks for the last event of the job and what follows, so nothing is kept of a job but what
its channel keeps.
"""

import os
import secrets
import threading
import time

from flask import Flask, redirect, render_template, request, url_for

from examples.same_origin import refuse_other_origins
from flask_sockets2.sse import sse

ROWS = 400
SECONDS = 12  # that the job takes

app = Flask(__name__)
# The addresses of streams are signed. Several workers need one key in common.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
app.register_blueprint(sse, url_prefix="/stream")
app.before_request(refuse_other_origins)


def import_rows(bar, fails):
    """A job that takes its time; it tells every row, and `bar` publishes a few times a second."""
    with bar:
        for row in range(ROWS):
            time.sleep(SECONDS / ROWS)
            if fails and row > 0.6 * ROWS:
                bar.fail(f"row {row} is no address")
                return
            bar.advance(text=f"row {row + 1} of {ROWS}")


@app.get("/")
def index():
    return render_template("progress.html", rows=ROWS, job=None)


@app.post("/jobs")
def begin():
    job = secrets.token_hex(4)
    bar = sse.progress(f"job:{job}", total=ROWS)
    threading.Thread(target=import_rows, args=(bar, "fails" in request.form), daemon=True).start()
    return redirect(url_for("show", job=job), 303)


@app.get("/jobs/<job>")
def show(job):
    # Only the visitor whose page this is can use the address: it may end up in a log.
    stream = sse.url(f"job:{job}", last=1, bind="session")
    html = render_template("progress.html", rows=ROWS, job=job, stream=stream)
    # A page from a cache would bring an old address.
    return html, {"Cache-Control": "no-store"}
