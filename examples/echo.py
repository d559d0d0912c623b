"""A page and a WebSocket that sends back what it gets, both at /echo.

gunicorn -k flask_sockets2.worker examples.echo:app
"""

from flask import Blueprint, Flask, redirect, render_template, url_for

from flask_sockets2 import Sockets

pages = Blueprint("echo", __name__)
sockets_of_echo = Blueprint("echo_sockets", __name__)


@pages.route("/echo")
def page():
    return render_template("echo.html")


@sockets_of_echo.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


app = Flask(__name__)
app.register_blueprint(pages)
Sockets(app).register_blueprint(sockets_of_echo)


@app.route("/")
def index():
    return redirect(url_for("echo.page"))
