"""Flask-Talisman: https only, and a Content-Security-Policy with nonces."""

from flask import Flask
from flask_talisman import Talisman

from tests.neighbours.parts import PAGE, add_parts

app = Flask(__name__)
Talisman(
    app,
    content_security_policy={"default-src": "'self'", "script-src": "'self'"},
    content_security_policy_nonce_in=["script-src"],
)
add_parts(app, PAGE.replace("{{ turbo() }}", "{{ turbo(nonce=csp_nonce()) }}"))
