"""Flask-SQLAlchemy with a pool of one connection."""

import os

from flask import Flask, jsonify
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
    "pool_size": 1,
    "max_overflow": 0,
    "pool_timeout": 20,
    "connect_args": {"check_same_thread": False},
}
db = SQLAlchemy(app)
sockets, turbo, sse = add_parts(app)


class Word(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


with app.app_context():
    db.create_all()


def number():
    return db.session.query(Word).count()


@sockets.route("/listen")
def listen(ws):
    number()
    ws.subscribe("words")


@sockets.route("/once")
def once(ws):
    """A handler that has the session while it runs."""
    db.session.add(Word(text="uncommitted"))
    db.session.flush()
    ws.send("flushed")


@sockets.route("/talk")
def talk(ws):
    """As docs/database-sessions.rst says."""
    while (text := ws.receive()) is not None:
        with app.app_context():
            db.session.add(Word(text=text))
            db.session.commit()
            answer = str(number())
        ws.send(answer)


@sockets.route("/removes")
def removes(ws):
    while ws.receive() is not None:
        answer = str(number())
        db.session.remove()
        ws.send(answer)


@app.get("/pool")
def pool():
    return jsonify(number=number(), out=db.engine.pool.checkedout())
