"""DispatcherMiddleware: an application at / and another one under /shop."""

from flask import Flask, url_for
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.neighbours.parts import add_parts

app = Flask(__name__)
add_parts(app)
shop = Flask("shop")
shop.config["SESSION_COOKIE_NAME"] = "shop"
sockets, turbo, sse = add_parts(shop)


@shop.get("/where")
def where():
    return f"{url_for('echo')} {sse.url()}"


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/shop": shop})
