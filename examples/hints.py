"""A slow page in three ways, and the waterfall of each: what Early Hints and an early head gain.

    gunicorn -k flask_sockets2.worker examples.hints:app

The page takes 600 ms to make and its stylesheet 400 ms to come. One after the other that is a
second. With the head sent first, or hints ahead of the page, the browser fetches the stylesheet
meanwhile. Browsers heed hints over HTTP/2 only, so for these put a proxy in front that passes a
response 103, tell it to send X-Early-Hints: 1, and open its https address:
docs/firehose.rst has the configuration.
"""

import time

from flask import Flask, Response, g, redirect, render_template, request, url_for

from flask_sockets2 import Firehose

PAGE_TIME = 0.6  # seconds, of a database for example
STYLE_TIME = 0.4  # seconds, of a network that is far away

app = Flask(__name__)
app.config["FIREHOSE_HOP_HEADER"] = "X-Early-Hints"
firehose = Firehose(app, connector=None)


def style_url():
    """The stylesheet, by another URL in each visit, so that no cache spoils the comparison."""
    if "asked" not in g:
        g.asked = now()
    return url_for("style", asked=g.asked)


def now():
    """Return milliseconds of the machine's clock."""
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
    # The browser's own times of what was hinted begin when the page asks for it.
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
