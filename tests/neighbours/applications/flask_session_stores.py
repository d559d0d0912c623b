"""Flask-Session with one of its stores: STORE and STORE_URL."""

import os

from cachelib.file import FileSystemCache
from flask import Flask, render_template_string, request, session
from flask_session import Session

from tests.neighbours.parts import add_parts

app = Flask(__name__)
if os.environ["STORE"] == "redis":
    from redis import Redis

    app.config["SESSION_TYPE"] = "redis"
    app.config["SESSION_REDIS"] = Redis.from_url(os.environ["STORE_URL"])
elif os.environ["STORE"] == "sqlalchemy":
    from flask_sqlalchemy import SQLAlchemy

    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["STORE_URL"]
    app.config["SESSION_TYPE"] = "sqlalchemy"
    app.config["SESSION_SQLALCHEMY"] = SQLAlchemy(app)
else:
    app.config["SESSION_TYPE"] = "cachelib"
    app.config["SESSION_CACHELIB"] = FileSystemCache(os.environ["STORE_URL"])
Session(app)
sockets, turbo, sse = add_parts(app)


@app.post("/login")
def login():
    session["user"] = request.form["user"]
    return "welcome"


@app.post("/logout")
def logout():
    session.clear()
    return "bye"


@app.get("/me")
def me():
    return f"{session.get('user')} {session.get('seen')}"


@sockets.route("/me")
def me_too(ws):
    ws.send(str(session.get("user")))
    while ws.receive() is not None:
        session["seen"] = "by the socket"


@app.get("/my/page")
def my_page():
    return render_template_string(
        "{{ turbo() }}{{ turbo.stream_from('mine', bind='session') }}<p>{{ session.user }}</p>"
    )


@turbo.user_id
def user_id():
    return session.get("user")


@app.post("/tell")
def tell():
    turbo.push(turbo.update("for you", "news"), to=request.form["user"])
    return "told"
