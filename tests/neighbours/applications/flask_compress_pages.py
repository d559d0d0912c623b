"""Flask-Compress with its defaults."""

from flask import Flask
from flask_compress import Compress

from tests.neighbours.parts import add_parts

app = Flask(__name__)
Compress(app)
sockets, turbo, sse = add_parts(app)


@app.get("/large")
def large():
    return "a large page " * 1000


@app.post("/form")
def form():
    return turbo.stream(turbo.update("x" * 1000, "news"))


@app.get("/generated")
def generated():
    return sse.response(data for data in ["one", "two"]) if hasattr(sse, "response") else ""
