"""Flask-HTTPAuth: Basic, and a token."""

from flask import Flask
from flask_httpauth import HTTPBasicAuth, HTTPTokenAuth

from tests.neighbours.parts import add_parts

app = Flask(__name__)
auth = HTTPBasicAuth()
tokens = HTTPTokenAuth(scheme="Bearer")
sockets, turbo, sse = add_parts(app)


@auth.verify_password
def verify_password(name, password):
    return name if password == "right" else None


@tokens.verify_token
def verify_token(token):
    return "ann" if token == "right" else None


@sockets.route("/private", accept=False)
@auth.login_required
def private(ws):
    ws.send(f"hello, {auth.current_user()}")


@sockets.route("/token", accept=False)
@tokens.login_required
def token(ws):
    ws.send(f"hello, {tokens.current_user()}")


@app.get("/private/events")
@auth.login_required
def private_events():
    return sse.stream()
