"""Flask-RESTX: an API that also answers the application's errors."""

from flask import Flask
from flask_restx import Api, Resource

from tests.neighbours.parts import add_parts

app = Flask(__name__)
sockets, turbo, sse = add_parts(app)
api = Api(app, prefix="/api", doc="/api/doc")


@api.route("/orders/<int:number>")
class Order(Resource):
    def get(self, number):
        return {"number": number}

    def put(self, number):
        sockets.publish("orders", {"number": number})
        return {}, 202


@sockets.route("/orders")
def orders(ws):
    ws.subscribe("orders", "start")


@sockets.route("/broken", accept=False)
def broken(ws):
    raise LookupError("on purpose")
