"""A to-do list that many edit at once, without a line of JavaScript of its own.

    gunicorn -k flask_sockets2.worker examples.todo:app

What one window adds, ticks off or removes, all others show at once. The window itself is answered
with the same streams; a browser without JavaScript with a redirect, for these are ordinary forms.

The list is in this process' memory, so it needs exactly one worker. With a database in its place,
and Redis or Valkey as SOCKETS_BROKER_URL, there may be many.
"""

import os
import secrets
from dataclasses import dataclass
from itertools import count

from flask import Flask, flash, render_template, request, url_for

from examples.same_origin import refuse_other_origins
from flask_sockets2 import Turbo

LONGEST_TEXT = 80  # characters
MOST_TODOS = 50

app = Flask(__name__)
# Several workers need one key in common, from the environment; one worker may invent it.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
turbo = Turbo(app)
app.before_request(refuse_other_origins)


@dataclass
class Todo:
    number: int
    text: str
    done: bool = False


todos = {}
numbers = count(1)


@app.context_processor
def inject_todos():
    left = sum(not todo.done for todo in todos.values())
    return {"todos": list(todos.values()), "left": left, "longest_text": LONGEST_TEXT}


@app.get("/")
def index():
    # Asked for before the list is read: what is pushed from now on reaches the page.
    turbo.position("todos")
    return render_template("todo.html")


@app.post("/")
def add():
    text = " ".join(request.form.get("text", "").split())
    error = error_of(text)
    if error:
        turbo.position("todos")
        return turbo.render_form("todo.html", text=text, error=error)  # with status 422
    todo = Todo(next(numbers), text)
    todos[todo.number] = todo
    return answer(
        turbo.append(template="_todo.html", todo=todo, target="todos"),
        f"Added “{text}”.",
        turbo.replace(template="_todo_form.html", target="new"),  # empty again
    )


def error_of(text):
    if not text:
        return "Write what is to be done."
    if len(text) > LONGEST_TEXT:
        return f"Write it in up to {LONGEST_TEXT} characters."
    if len(todos) >= MOST_TODOS:
        return "That is enough for a day: remove something first."
    return ""


@app.post("/<int:number>")
def edit(number):
    todo = todos.get(number)
    if todo is None:
        return answer(turbo.remove(f"todo-{number}"), "Somebody has removed that.")
    # Not the opposite of what it is: two who tick it off at once mean the same.
    todo.done = request.form.get("done") == "yes"
    return answer(
        # By morphing the button stays the element that it is.
        turbo.replace(template="_todo.html", todo=todo, target=f"todo-{number}", method="morph"),
        f"Done: “{todo.text}”." if todo.done else f"To be done again: “{todo.text}”.",
    )


@app.post("/<int:number>/remove")
def remove(number):
    todo = todos.pop(number, None)
    words = f"Removed “{todo.text}”." if todo else "Somebody else was faster."
    return answer(turbo.remove(f"todo-{number}"), words)


def answer(change, words, *more):
    """Answer a form, once the change is made: all other windows get it by their stream.

    :param change: a stream, for all.
    :param words: what to tell the one who made it.
    :param more: streams for that one only.
    """
    change += turbo.update(template="_todo_left.html", target="left")
    turbo.broadcast_to("todos", stream=change, exclude_sender=True)
    flash(words)
    if turbo.can_stream():
        # What was wrong with a form before is settled; what is being written stays.
        return turbo.stream([change, turbo.flashes(), turbo.remove("error"), *more])
    return turbo.redirect(url_for("index"))  # with status 303
