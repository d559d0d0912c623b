"""A login by fetch(), and a WebSocket for users who have logged in.

    gunicorn -k flask_sockets2.worker examples.login:app

The browser sends the session cookie with the handshake, so the handler has the same `session` as a
view. A visitor without a login is refused with 401 before the handshake. A WebSocket would stay
open after the logout, so the logout closes all WebSockets of its user.
"""

import os
import secrets

from flask import Flask, Response, abort, jsonify, render_template, request, session
from werkzeug.security import check_password_hash, generate_password_hash

from examples.same_origin import refuse_other_origins
from flask_sockets2 import Sockets

app = Flask(__name__)
# Several workers need the same key, from the environment. A single worker may make one up.
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()
# HttpOnly is Flask's default. Over HTTPS, set SESSION_COOKIE_SECURE=True as well.
app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
# SameSite keeps the cookie from other sites, but not from subdomains and other ports.
app.before_request(refuse_other_origins)
sockets = Sockets(app)

passwords = {"ada": generate_password_hash("lovelace")}
nobody = generate_password_hash(secrets.token_hex())


@app.route("/")
def page():
    return render_template("login.html")


@app.post("/login")
def login():
    form = request.get_json()
    user, password = str(form.get("user")), str(form.get("password"))
    # Check a hash for unknown users, too: the response time must not reveal which users exist.
    if not check_password_hash(passwords.get(user, nobody), password):
        return jsonify(error="wrong name or password"), 401
    session["user"] = user
    response = jsonify(user=user)
    response.set_cookie("greeting", "Welcome back" if "greeting" in request.cookies else "Welcome")
    return response


@sockets.user_id
def user_id():
    return session.get("user")


@app.post("/logout")
def logout():
    user = session.pop("user", None)
    response = Response(status=204)

    # After the response: a page that connects before it still has the old cookie.
    @response.call_on_close
    def disconnect():
        if user is not None:
            sockets.disconnect(user=user, reason="logged out")

    return response


@sockets.route("/private", accept=False)
def private(ws):
    if "user" not in session:
        abort(401)
    ws.accept()
    ws.send(f"{request.cookies.get('greeting', 'Hello')}, {session['user']}!")
    for message in ws:
        ws.send(f"{session['user']} said: {message}")
