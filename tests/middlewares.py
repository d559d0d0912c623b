"""Applications with one kind of WSGI middleware each, for tests/test_middleware.py.

``/buffers/inside`` is an application whose ``wsgi_app`` was wrapped before ``Sockets(app)``, as
``/buffers/outside`` was after it. Around the middleware, or between it and ours, stands a recorder.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from functools import cache
from io import BytesIO, StringIO
from threading import Event
from wsgiref.validate import validator

from flask import Flask, Response, abort, redirect, request
from werkzeug.debug import DebuggedApplication
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.middleware.profiler import ProfilerMiddleware
from werkzeug.middleware.shared_data import SharedDataMiddleware

from flask_sockets2 import Sockets

texts = {}  # what middleware has written, by its name


def into(name):
    return texts.setdefault(name, StringIO())


class Closing:
    def __init__(self, body):
        self.body = body

    def __iter__(self):
        return iter(self.body)

    def close(self):
        if hasattr(self.body, "close"):
            self.body.close()


def buffers(app):
    def call(environ, start_response):
        given = []

        def start(*args):
            given[:] = args
            return given.append

        body = app(environ, start)
        try:
            whole = b"".join(body)
        finally:
            if hasattr(body, "close"):
                body.close()
        start_response(*given[:2])
        return [whole]

    return call


def generates(app):
    def call(environ, start_response):
        body = app(environ, start_response)
        try:
            yield from body
        finally:
            if hasattr(body, "close"):
                body.close()

    return call


def in_a_thread(app):
    def call(environ, start_response):
        answer = []
        thread = threading.Thread(target=lambda: answer.append(app(environ, start_response)))
        thread.start()
        thread.join()
        return answer[0]

    return call


def copies(app):
    return lambda environ, start_response: app({**environ, "tests.copy": "yes"}, start_response)


def reads_the_body(app):
    def call(environ, start_response):
        environ["wsgi.input"].read(0)
        return app(environ, start_response)

    return call


def changes_the_status(app):
    def call(environ, start_response):
        return app(environ, lambda status, *more: start_response("200 OK", *more))

    return call


def adds(app):
    def call(environ, start_response):
        upgrade = "HTTP_UPGRADE" in environ

        def start(status, headers, *more):
            added = [
                ("X-Request-Id", "seven"),
                ("Set-Cookie", "a=1"),
                ("Set-Cookie", "b=2"),
                *([("Content-Length", "9"), ("Content-Encoding", "gzip")] if upgrade else []),
                ("Sec-WebSocket-Accept", "wrong"),
                ("connection", "close"),
            ]
            return start_response(status, headers + added, *more)

        return app(environ, start)

    return call


def adds_what_cannot_be_sent(app):
    def call(environ, start_response):
        def start(status, headers, *more):
            if status.startswith("101"):
                headers = [*headers, ("X-Broken", "a\r\nb")]
            return start_response(status, headers, *more)

        return app(environ, start)

    return call


def fails_to_begin(app):
    def call(environ, start_response):
        def start(status, *more):
            if status.startswith("101"):
                raise RuntimeError("told by the middleware")
            return start_response(status, *more)

        return app(environ, start)

    return call


def catches(app):
    def call(environ, start_response):
        try:
            return app(environ, start_response)
        except Exception:
            start_response("500 Caught", [("Content-Type", "text/plain")], sys.exc_info())
            return [b"caught"]

    return call


def sends_a_file(app):
    def call(environ, start_response):
        body = app(environ, start_response)
        if not environ.get("HTTP_UPGRADE"):
            return body
        whole = b"".join(body)
        if hasattr(body, "close"):
            body.close()
        wrap = environ.get("wsgi.file_wrapper", lambda file, *size: iter([file.read()]))
        return wrap(BytesIO(whole))

    return call


def sends_much(app):
    def call(environ, start_response):
        body = app(environ, start_response)
        if "HTTP_UPGRADE" not in environ or environ["PATH_INFO"] == "/refuses":
            return body
        b"".join(body)
        if hasattr(body, "close"):
            body.close()
        return (bytes(2**20) for _ in range(16))

    return call


def writes(app):
    def call(environ, start_response):
        writer = []

        def start(*args):
            writer[:] = [start_response(*args)]
            return writer[0]

        body = app(environ, start)
        try:
            for piece in body:
                writer[0](piece)
            writer[0](b"")
        finally:
            if hasattr(body, "close"):
                body.close()
        return []

    return call


class Last:
    """Requires that the response has begun when it is asked for the first piece."""

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        begun = []

        def start(*args):
            assert not begun or len(args) == 3, "a second time"
            begun.append(args)
            return start_response(*args)

        def pieces(body):
            assert begun, "not begun"
            yield from body

        return Closing(pieces(self.app(environ, start)))


MIDDLEWARE = {
    "none": lambda app: app,
    "profiler": lambda app: ProfilerMiddleware(app, stream=into("profiler")),
    "shared_data": lambda app: SharedDataMiddleware(app, {"/files": "."}),
    "dispatcher": lambda app: DispatcherMiddleware(app, {"/elsewhere": app}),
    "debugger": lambda app: DebuggedApplication(app, evalex=True),
    "validator": validator,
    "lint": LintMiddleware,
    "buffers": buffers,
    "generates": generates,
    "in_a_thread": in_a_thread,
    "copies": copies,
    "reads_the_body": reads_the_body,
    "changes_the_status": changes_the_status,
    "adds": adds,
    "adds_what_cannot_be_sent": adds_what_cannot_be_sent,
    "fails_to_begin": fails_to_begin,
    "catches": catches,
    "sends_a_file": sends_a_file,
    "sends_much": sends_much,
    "writes": writes,
    "last": Last,
}


class Recorder:
    """Notes what reaches the server: calls of start_response, and how the body was treated."""

    def __init__(self, app):
        self.app = app
        self.notes = {}  # the newest of each path
        self.over = defaultdict(Event)

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        note = self.notes[path] = {"began": [], "closed": 0, "exhausted": False}
        over = self.over[path] = Event()

        def start(*args):
            again = len(args) > 2 and args[2] is not None
            note["began"].append([args[0], [list(field) for field in args[1]], again])
            return start_response(*args)

        return Recorded(self.app(environ, start), note, over)


class Recorded:
    def __init__(self, body, note, over):
        self.body, self.note, self.over = body, note, over

    def __iter__(self):
        yield from self.body
        self.note["exhausted"] = True

    def close(self):
        self.note["closed"] += 1
        try:
            if hasattr(self.body, "close"):
                self.body.close()
        finally:
            self.over.set()


recorders = {}


def make_app(name, inside):
    app = Flask(__name__)
    app.config["SOCKETS_CLOSE_TIMEOUT"] = 0.5
    recorder = Recorder(app.wsgi_app)
    if inside:
        recorder.app = MIDDLEWARE[name](recorder.app)
        app.wsgi_app = recorder
        sockets = Sockets(app)
    else:
        sockets = Sockets(app)
        recorder.app = MIDDLEWARE[name](app.wsgi_app)
        app.wsgi_app = recorder

    @sockets.route("/echo", subprotocols=["a"])
    def echo(ws):
        while (message := ws.receive()) is not None:  # gevent-websocket's is no iterator
            ws.send(f"{message} {'tests.copy' in ws.environ}")

    @sockets.route("/listen")
    def listen(ws):
        ws.subscribe("news")
        ws.send("ready")

    @sockets.route("/headers", accept=False)
    def headers(ws):
        ws.accept(headers=[("X-Own", "1"), ("Content-Type", "text/plain")])
        ws.send("hello")

    @sockets.route("/redirects")
    def redirects(ws):
        ws.subscribe("news")
        abort(redirect("/elsewhere"))

    @sockets.route("/fails")
    def fails(ws):
        ws.receive()
        raise RuntimeError("told by the handler")

    @sockets.route("/refuses", accept=False)
    def refuses(ws):
        return "not you", 403

    @app.after_request
    def after(response):
        status = request.args.get("after")
        return app.response_class("another", status=int(status)) if status else response

    @app.get("/page")
    def page():
        return "page"

    @app.get("/stream")
    def stream():
        return Response(iter([b"one ", b"two"]))

    @app.get("/publish/<text>")
    def publish(text):
        sockets.publish("news", text)
        return ""

    recorders[f"{name}/{'inside' if inside else 'outside'}"] = recorder
    return app


front = Flask(__name__)


@front.get("/seen/<name>/<where>/<path>")
def seen(name, where, path):
    """What the recorder has, and what middleware has written; with ?over once that is over."""
    recorder = recorders[f"{name}/{where}"]
    if "over" in request.args:
        assert recorder.over[f"/{path}"].wait(30)
    written = texts[name].getvalue() if name in texts else ""
    return {**recorder.notes[f"/{path}"], "written": written}


@cache
def made(name, where):
    return make_app(name, where == "inside")


def app(environ, start_response):
    _, name, where, *_ = [*environ["PATH_INFO"].split("/"), "", ""]
    if name not in MIDDLEWARE:
        return front(environ, start_response)
    prefix = f"/{name}/{where}"
    return DispatcherMiddleware(front, {prefix: made(name, where)})(environ, start_response)
