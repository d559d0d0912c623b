"""Flask-Babel: the locale of the request in handlers, and in what is pushed."""

from datetime import date

from flask import Flask, render_template_string, request
from flask_babel import Babel, force_locale, format_date

from tests.neighbours.parts import add_parts

DAY = date(2026, 3, 1)


def get_locale():
    return request.args.get("lang") or request.accept_languages.best_match(["de", "en"])


app = Flask(__name__)
babel = Babel(app, locale_selector=get_locale)
sockets, turbo, sse = add_parts(app)
app.jinja_env.globals.update(DAY=DAY, format_date=format_date)


@app.get("/day")
def day_page():
    return format_date(DAY)


@sockets.route("/day")
def day(ws):
    while ws.receive() is not None:
        ws.send(format_date(DAY))


@app.get("/<lang>/page")
def page_of(lang):
    stream = "{{ turbo.stream_from('days', lang) }}"
    return render_template_string("{{ turbo() }}" + stream, lang=lang)


@app.post("/push")
def push():
    """Say it to all in the language of who posts, and to each language in its own."""
    turbo.push(turbo.update(render_template_string("{{ format_date(DAY) }}"), "day"))
    for lang in ("de", "en"):
        with force_locale(lang):
            text = render_template_string("{{ format_date(DAY) }}")
        turbo.broadcast_update_to("days", lang, target="day", content=text)
    return "pushed"
