"""Beaker's sessions, outside of Flask's, with the settings that docs/security.rst names."""

import os

from beaker.middleware import SessionMiddleware
from flask import Flask, request

from tests.neighbours.parts import add_parts

app = Flask(__name__)
sockets, turbo, sse = add_parts(app)
app.wsgi_app = SessionMiddleware(
    app.wsgi_app,
    {
        "session.type": "file",
        "session.data_dir": os.environ["FOLDER"],
        "session.save_accessed_time": False,
    },
)


@app.post("/login")
def login():
    session = request.environ["beaker.session"]
    session["user"] = request.form["user"]
    session.save()
    return "welcome"


@app.post("/logout")
def logout():
    request.environ["beaker.session"].delete()
    return "bye"


@app.get("/me")
def me():
    return str(request.environ["beaker.session"].get("user"))


@sockets.route("/me")
def me_too(ws):
    ws.send(str(request.environ["beaker.session"].get("user")))
    ws.receive()
