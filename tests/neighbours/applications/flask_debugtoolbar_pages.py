"""Flask-DebugToolbar."""

from flask import Flask
from flask_debugtoolbar import DebugToolbarExtension

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.debug = True
app.secret_key = "the toolbar asks for it at once"
toolbar = DebugToolbarExtension(app)
sockets, turbo, sse = add_parts(app)


@app.post("/form")
def form():
    return turbo.stream(turbo.update("<b>saved</b>", "news"))
