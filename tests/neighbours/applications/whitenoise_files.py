"""WhiteNoise serves the static files."""

import os

from flask import Flask
from whitenoise import WhiteNoise

from tests.neighbours.parts import add_parts

app = Flask(__name__)
add_parts(app)
app.wsgi_app = WhiteNoise(app.wsgi_app, root=os.environ["FILES"], prefix="static/")
