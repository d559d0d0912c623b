"""The orders of a pizzeria: a board for the kitchen, and a page for each order.

    gunicorn -k flask_sockets2.worker examples.orders:app

The page of an order listens to the stream of that order only. The board listens to a stream of
refreshes: after each, it loads itself again and morphs the changes into the page.

The orders are in the memory of this process, so run exactly one worker. To run several, keep the
orders in a database and set SOCKETS_BROKER_URL to a Redis or Valkey.
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
MOST_ORDERS = 100  # then the oldest is deleted


class Step(NamedTuple):
    title: str  # of the column on the board
    words: str  # for the customer
    button: str  # moves the order to the next step


STEPS = (
    Step("Ordered", "has been ordered", "Into the oven"),
    Step("In the oven", "is in the oven", "It is done"),
    Step("Ready", "is ready, come and get it", "Collected"),
    Step("Collected", "is yours, enjoy it", ""),
)

app = Flask(__name__)
# The key signs the names of streams. Several workers need the same key.
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
    # Read the positions before the orders, so that the page gets every later change.
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
        return turbo.render_form("order_new.html", name=name, dish=dish)  # 422 after a POST
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
    # The form names the wanted step: if two cooks press the button at once, the order moves once.
    if request.form.get("step", type=int) == order.step + 1 < len(STEPS):
        order.step += 1
        turbo.broadcast_update_to(
            "order", number, template="_order.html", order=order, target="progress"
        )
        turbo.broadcast_refresh_to("orders")  # the sender's own page is redirected instead
    return turbo.redirect(url_for("board"))


def order_of(number):
    return orders.get(number) or abort(404)


lookers = 1  # windows that show the board


@turbo.every(2)
def count_lookers():
    global lookers
    before, lookers = lookers, turbo.subscribers("lookers") or 1
    if lookers != before:
        turbo.broadcast_update_to("lookers", content=lookers, target="lookers")
