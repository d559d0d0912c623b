"""Flask-WTF's CSRFProtect for all views."""

from flask import Flask
from flask_wtf import CSRFProtect

from tests.neighbours.parts import PAGE, add_parts

app = Flask(__name__)
CSRFProtect(app)
sockets, turbo, sse = add_parts(app, PAGE.replace("</head>", "{{ turbo.csrf_meta() }}</head>"))
