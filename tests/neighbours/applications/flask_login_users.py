"""Flask-Login."""

from flask import Flask, render_template_string, request
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    login_required,
    login_user,
    logout_user,
)

from tests.neighbours.parts import add_parts

app = Flask(__name__)
login_manager = LoginManager(app)
sockets, turbo, sse = add_parts(app)


class User(UserMixin):
    def __init__(self, id):
        self.id = id


@login_manager.user_loader
def load_user(user_id):
    return User(user_id)


@turbo.user_id
def user_id():
    return current_user.get_id()


@app.post("/login")
def login():
    login_user(User(request.form["user"]), remember=True)
    return "welcome"


@app.post("/logout")
def logout():
    user = current_user.get_id()
    logout_user()
    sockets.disconnect(user=user)
    return "bye"


@app.get("/private")
@login_required
def private_page():
    return f"hello, {current_user.id}"


@sockets.route("/private", accept=False)
@login_required
def private(ws):
    ws.send(f"hello, {current_user.id}")
    while (message := ws.receive()) is not None:
        ws.send(f"{current_user.id}: {message}")


@app.get("/private/events")
@login_required
def private_events():
    return sse.stream()


@app.get("/private/page")
@login_required
def private_turbo():
    return render_template_string("{{ turbo() }}<p>{{ current_user.id }}</p>")


@app.post("/tell")
def tell():
    turbo.push(
        turbo.update(render_template_string("from {{ current_user.id }}"), "news"),
        to=request.form["user"],
    )
    return "told"
