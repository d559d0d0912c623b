"""The echo and the chat in one application, with a page that leads to them: `make demo`.

gunicorn -k flask_sockets2.worker examples.demo:app
"""

from flask import Flask, render_template

from examples import chat, echo
from flask_sockets2 import Sockets

app = Flask(__name__)
sockets = Sockets(app)

for example_pages in (echo.pages, chat.pages):
    app.register_blueprint(example_pages)
for example_sockets in (echo.sockets_of_echo, chat.sockets_of_chat):
    sockets.register_blueprint(example_sockets)


@app.route("/")
def index():
    return render_template("index.html")
