"""Flask-Vite: its tags are put into every page."""

import os

from flask import Flask
from flask_vite import Vite

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config["VITE_AUTO_INSERT"] = True
app.config["VITE_FOLDER_PATH"] = os.environ["VITE"]
Vite(app)
sockets, turbo, sse = add_parts(app)


@app.post("/form")
def form():
    return turbo.stream(turbo.update("<b>saved</b>", "news"))
