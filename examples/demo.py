"""All examples that have a page, in one application, with a page that leads to them: `make demo`.

    gunicorn -k flask_sockets2.worker examples.demo:app

With SOCKETS_BROKER_URL=redis://localhost:6379/0 scripts can publish to it, too.
"""

import os

from flask import Flask, render_template

from examples import chat, echo, notify

app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ.get("SOCKETS_BROKER_URL", "memory://")

for example in (echo, chat, notify):
    app.register_blueprint(example.pages)
    example.sockets.init_app(app)


@app.route("/")
def index():
    shared = app.config["SOCKETS_BROKER_URL"] != "memory://"
    return render_template("index.html", shared=shared)
