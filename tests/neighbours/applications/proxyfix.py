"""ProxyFix behind a proxy that says who asks, how, for which host and under which prefix."""

from flask import Flask, request, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.neighbours.parts import add_parts

app = Flask(__name__)
sockets, turbo, sse = add_parts(app)
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)


@app.get("/where")
def where():
    return f"{url_for('echo')} {sse.url()}"


@sockets.route("/who")
def who(ws):
    ws.send(f"{request.remote_addr} {request.url} {request.is_secure}")
