"""The SDK of Sentry, with a transport that keeps what it is given."""

import sentry_sdk
from flask import Flask, jsonify
from sentry_sdk.transport import Transport

from tests.neighbours.parts import add_endings, add_parts

kept = []


class Kept(Transport):
    def capture_envelope(self, envelope):
        kept.extend(item.payload.json for item in envelope.items if item.payload.json)


def sample(context):
    """Leave out what lasts as long as its visitor stays."""
    environ = context["wsgi_environ"]
    is_handshake = "HTTP_UPGRADE" in environ
    return 0.0 if is_handshake and environ["PATH_INFO"] == "/echo" else 1.0


sentry_sdk.init(
    dsn="https://key@sentry.example/1",
    transport=Kept,
    traces_sampler=sample,
    auto_session_tracking=False,
)

app = Flask(__name__)
sockets, turbo, sse = add_parts(app)
add_endings(app, sockets, lambda text: sentry_sdk.add_breadcrumb(message=text))


@app.get("/kept")
def get_kept():
    return jsonify(kept)
