"""A slow page, sent in three ways, with a waterfall chart of each: plain, Early Hints, head first.

    gunicorn -k flask_sockets2.worker examples.hints:app

The server needs 600 ms to make the page and 400 ms to send its stylesheet, together a second. With
Early Hints, or with the head sent first, the browser fetches the stylesheet at the same time.
Browsers accept Early Hints over HTTP/2 only. To see them, put a proxy in front that passes a 103
response and sends X-Early-Hints: 1 to the application, and open its https address.
docs/firehose.rst has the configuration.
"""

import time

from flask import Flask, Response, g, redirect, render_template, request, url_for

from flask_sockets2 import Firehose

PAGE_TIME = 0.6  # seconds, for example for a database query
STYLE_TIME = 0.4  # seconds, for example over a slow network

app = Flask(__name__)
app.config["FIREHOSE_HOP_HEADER"] = "X-Early-Hints"
firehose = Firehose(app, connector=None)


def style_url():
    """Return the stylesheet's URL, a new one for each visit so that no cache distorts the times."""
    if "asked" not in g:
        g.asked = now()
    return url_for("style", asked=g.asked)


def now():
    """Return the time in milliseconds."""
    return round(time.monotonic() * 1000)


def make_rows():
    time.sleep(PAGE_TIME)
    return ["Tea", "Milk", "Sugar"]


@app.get("/")
def index():
    return redirect(url_for("plain"))


@app.get("/plain")
def plain():
    return render_template("hints.html", way="plain", make_rows=make_rows)


@app.get("/hinted")
@firehose.hints(style_url)
def hinted():
    return render_template("hints.html", way="hinted", make_rows=make_rows)


@app.get("/flushed")
def flushed():
    return firehose.flush("hints.html", way="flushed", make_rows=make_rows)


@app.get("/slow.css")
def style():
    waited = max(0, now() - request.args.get("asked", now(), type=int))
    time.sleep(STYLE_TIME)
    # The browser's own timing of a hinted file begins only when the page asks for it.
    return Response(
        render_template("slow.css"),
        mimetype="text/css",
        headers={
            "Cache-Control": "max-age=60",
            "Server-Timing": f"asked;dur={waited}, made;dur={STYLE_TIME * 1000:.0f}",
        },
    )


@app.context_processor
def inject():
    return {"style_url": style_url}
