"""The orders of a pizzeria: a board for the kitchen, and for each order a page for who waits.

    gunicorn -k flask_sockets2.worker examples.orders:app

The page of an order has the stream of that order alone. The board has one by which it is told to
load itself again; what has changed is morphed into the page, and everything else stays as it is.

The orders are in this process' memory, so it needs exactly one worker. With a database in their
place, and Redis or Valkey as SOCKETS_BROKER_URL, there may be many.
"""

import os
import secrets
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from flask import Flask, abort, render_template, request, url_for

from examples.same_origin import refuse_other_origins
from flask_sockets2 import Turbo

MENU = ("Margherita", "Funghi", "Quattro stagioni", "Diavola")
LONGEST_NAME = 30  # characters
MOST_ORDERS = 100  # of which the oldest are forgotten


class Step(NamedTuple):
    title: str  # of its column
    words: str  # for who waits
    button: str  # leads to the next one


STEPS = (
    Step("Ordered", "has been ordered", "Into the oven"),
    Step("In the oven", "is in the oven", "It is done"),
    Step("Ready", "is ready, come and get it", "Collected"),
    Step("Collected", "is yours, enjoy it", ""),
)

app = Flask(__name__)
# Names of streams are signed. Several workers need one key in common, one worker may invent it.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")
turbo = Turbo(app)
app.before_request(refuse_other_origins)


@dataclass
class Order:
    number: int
    name: str
    dish: str
    step: int = 0  # in STEPS


orders = {}
numbers = count(1)


@app.context_processor
def inject_choices():
    return {"steps": STEPS, "menu": MENU, "longest_name": LONGEST_NAME}


@app.get("/")
def board():
    # Asked for before the rest is read: what is pushed from now on reaches the page.
    turbo.position("orders")
    turbo.position("lookers")
    columns = [
        (step, [order for order in orders.values() if order.step == number])
        for number, step in enumerate(STEPS[:-1])
    ]
    return render_template("orders.html", columns=columns, lookers=lookers)


@app.route("/new", methods=["GET", "POST"])
def new():
    name = " ".join(request.form.get("name", "").split())
    dish = request.form.get("dish", MENU[0])
    if request.method == "GET" or not 0 < len(name) <= LONGEST_NAME or dish not in MENU:
        return turbo.render_form("order_new.html", name=name, dish=dish)  # a form sent: 422
    order = Order(next(numbers), name, dish)
    orders[order.number] = order
    if len(orders) > MOST_ORDERS:
        del orders[min(orders)]
    turbo.broadcast_refresh_to("orders")
    return turbo.redirect(url_for("show", number=order.number))  # 303


@app.get("/<int:number>")
def show(number):
    turbo.position("order", number)
    return render_template("order.html", order=order_of(number))


@app.post("/<int:number>")
def advance(number):
    order = order_of(number)
    # The button says where to: two cooks who press it at once do not send it on twice.
    if request.form.get("step", type=int) == order.step + 1 < len(STEPS):
        order.step += 1
        turbo.broadcast_update_to(
            "order", number, template="_order.html", order=order, target="progress"
        )
        turbo.broadcast_refresh_to("orders")  # not to the page that sends this: it is redirected
    return turbo.redirect(url_for("board"))


def order_of(number):
    return orders.get(number) or abort(404)


lookers = 1  # windows that show the board: at least the one in which it is read


@turbo.every(2)
def count_lookers():
    global lookers
    before, lookers = lookers, turbo.subscribers("lookers") or 1
    if lookers != before:
        turbo.broadcast_update_to("lookers", content=lookers, target="lookers")
