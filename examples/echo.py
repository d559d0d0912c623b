"""A page and a WebSocket that sends each message back, both at /echo.

gunicorn -k flask_sockets2.worker examples.echo:app
"""

from flask import Blueprint, Flask, redirect, render_template, url_for

from flask_sockets2 import Sockets

pages = Blueprint("echo", __name__)
sockets = Sockets()


@pages.route("/echo")
def page():
    return render_template("echo.html")


@sockets.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


app = Flask(__name__)
app.register_blueprint(pages)
sockets.init_app(app)


@app.route("/")
def index():
    return redirect(url_for("echo.page"))
