"""A to-do list that several people edit at once, without a line of JavaScript of its own.

    gunicorn -k flask_sockets2.worker examples.todo:app

If you add, tick off or remove a to-do in one window, all other windows show the change at once.
Your own window gets the same streams as the answer to its form. A browser without JavaScript gets a
redirect, since the forms are ordinary ones.

The list is in the memory of this process, so run exactly one worker. To run several, keep the list
in a database and set SOCKETS_BROKER_URL to a Redis or Valkey.
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
# Several workers need the same key, from the environment. A single worker may make one up.
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
    # Read the position before the list, so that the page gets every later change.
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
    # The form says which state is wanted: two people who tick it off at once mean the same.
    todo.done = request.form.get("done") == "yes"
    return answer(
        # A morph keeps the button, so that the focus stays on the button.
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
        # Remove the old error, and leave the text that is being typed.
        return turbo.stream([change, turbo.flashes(), turbo.remove("error"), *more])
    return turbo.redirect(url_for("index"))  # with status 303
