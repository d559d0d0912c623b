"""Flask-JWT-Extended: the token in the header, a cookie or the query."""

from flask import Flask, jsonify
from flask_jwt_extended import (
    JWTManager,
    create_access_token,
    get_jwt_identity,
    jwt_required,
    set_access_cookies,
)

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = "a key for the tests that is as long as it has to be"
app.config["JWT_TOKEN_LOCATION"] = ["headers", "cookies", "query_string"]
jwt = JWTManager(app)
sockets, turbo, sse = add_parts(app)


@app.post("/login")
def login():
    token = create_access_token(identity="ann")
    response = jsonify(token=token)
    set_access_cookies(response, token)
    return response


@sockets.route("/private", accept=False)
@jwt_required()
def private(ws):
    ws.send(f"hello, {get_jwt_identity()}")


@app.get("/private/events")
@jwt_required()
def private_events():
    return sse.stream()
