"""Flask-Principal: a permission around a handler."""

from flask import Flask
from flask_principal import (
    Identity,
    Permission,
    Principal,
    RoleNeed,
    identity_changed,
    identity_loaded,
)

from tests.neighbours.parts import add_parts

app = Flask(__name__)
principals = Principal(app)
admins = Permission(RoleNeed("admin"))
sockets, turbo, sse = add_parts(app)


@identity_loaded.connect_via(app)
def on_identity_loaded(sender, identity):
    if identity.id == "ann":
        identity.provides.add(RoleNeed("admin"))


@app.post("/login/<user>")
def login(user):
    identity_changed.send(app, identity=Identity(user))
    return "welcome"


@sockets.route("/admin", accept=False)
@admins.require(403)
def admin(ws):
    ws.send("hello, admin")
