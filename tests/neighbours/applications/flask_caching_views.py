"""Flask-Caching: a page that is made to be cached for all, and one that is not."""

from itertools import count

from flask import Flask, render_template_string, session
from flask_caching import Cache

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config["CACHE_TYPE"] = "SimpleCache"
app.config["CACHE_DEFAULT_TIMEOUT"] = 300
cache = Cache(app)
sockets, turbo, sse = add_parts(app)
calls = count(1)


@turbo.user_id
def user_id():
    return session.get("user")


@app.post("/login/<user>")
def login(user):
    session["user"] = user
    return "welcome"


@app.get("/cached")
@cache.cached()
def cached():
    return f"call {next(calls)}"


@app.get("/cached/public")
@cache.cached()
def cached_public():
    return render_template_string(
        "{{ turbo(user=False) }}{{ turbo.stream_from('news', bind=None) }}"
    )


@app.get("/cached/private")
@cache.cached()
def cached_private():
    """What docs/turbo-pages.rst says not to do: the names are of who came first."""
    return render_template_string("{{ turbo() }}{{ turbo.stream_from('secret') }}")


@cache.memoize()
def answer(question):
    return f"{question}: call {next(calls)}"


@sockets.route("/answers")
def answers(ws):
    while (question := ws.receive()) is not None:
        ws.send(answer(question))
