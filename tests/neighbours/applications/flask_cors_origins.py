"""Flask-CORS: a page of another site may read."""

from flask import Flask
from flask_cors import CORS

from tests.neighbours.parts import add_parts

app = Flask(__name__)
CORS(app, origins=["https://other.example"], supports_credentials=True)
app.config["SOCKETS_ALLOWED_ORIGINS"] = ["same-origin", "https://other.example"]
sockets, turbo, sse = add_parts(app)
