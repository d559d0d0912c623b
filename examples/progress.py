"""A long job with a progress bar that survives a reload and works in several windows.

    gunicorn -k flask_sockets2.worker examples.progress:app

Here the job runs in a thread of the worker. In a Celery task or a script, begin the job with
`with Progress("redis://localhost:6379/0", channel, total=…) as bar`.

The page asks for the last event of the job and all later ones. So the channel is the only place
that stores the state of a job.
"""

import os
import secrets
import threading
import time

from flask import Flask, redirect, render_template, request, url_for

from examples.same_origin import refuse_other_origins
from flask_sockets2.sse import sse

ROWS = 400
SECONDS = 12  # duration of the job

app = Flask(__name__)
# The key signs the addresses of streams. Several workers need the same key.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
app.register_blueprint(sse, url_prefix="/stream")
app.before_request(refuse_other_origins)


def import_rows(bar, fails):
    """Run the job: it reports every row, and `bar` publishes a few times a second."""
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
    # Bind the address to this visitor, in case the address leaks, for example into a log.
    stream = sse.url(f"job:{job}", last=1, bind="session")
    html = render_template("progress.html", rows=ROWS, job=job, stream=stream)
    # A cached page would contain an old address.
    return html, {"Cache-Control": "no-store"}
