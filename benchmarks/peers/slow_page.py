"""A page that takes 600 ms to make, with a stylesheet that takes 400 ms to come."""

from __future__ import annotations

import time

from flask import Flask, Response, render_template_string

from flask_sockets2.firehose import Firehose, flush, hints

PAGE_TIME = 0.6  # seconds
STYLE_TIME = 0.4  # seconds

STYLE = "/slow.css"
PAGE = f"""<!doctype html>
<html lang="en"><head><title>Page</title><link rel="stylesheet" href="{STYLE}"></head>
{{{{ flush() }}}}<body><p>{{{{ work() }}}}</p></body></html>"""

app = Flask(__name__)
app.config["FIREHOSE_HOP_HEADER"] = "X-Early-Hints"
Firehose(app, connector=None)


def work() -> str:
    """Take as long as a database does that is slow."""
    time.sleep(PAGE_TIME)
    return "made"


@app.get("/plain")
def plain() -> str:
    """The stylesheet is asked for when the page has come."""
    return render_template_string(PAGE, work=work)


@app.get("/link")
def link() -> Response:
    """The same, named in the header of the response too."""
    headers = {"Link": f"<{STYLE}>; rel=preload; as=style"}
    return Response(render_template_string(PAGE, work=work), headers=headers)


@app.get("/hinted")
@hints(STYLE)
def hinted() -> str:
    """It is asked for at once."""
    return render_template_string(PAGE, work=work)


@app.get("/flushed")
def flushed() -> Response:
    """It is asked for when the head has come."""
    return flush(app.jinja_env.from_string(PAGE), work=work)


@app.get(STYLE)
def style() -> Response:
    """Come slowly, as from far away."""
    time.sleep(STYLE_TIME)
    fresh = {"Cache-Control": "max-age=60"}
    return Response("p { color: green }", mimetype="text/css", headers=fresh)


@app.get("/ready")
@app.get("/favicon.ico")
def ready() -> tuple[str, int]:
    """Say that the server serves."""
    return "", 204
