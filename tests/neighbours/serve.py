"""Serve an application as a program that is its own server does.

``python -m tests.neighbours.serve KIND MODULE`` where KIND is ``WebSocketServer`` or
``gevent-websocket``.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from importlib import import_module  # noqa: E402


def main(kind: str, module: str) -> None:
    app = import_module(module).app
    if kind == "gevent-websocket":
        from gevent.pywsgi import WSGIServer as Server
        from geventwebsocket.handler import WebSocketHandler

        options = {"handler_class": WebSocketHandler}
    else:
        from flask_sockets2 import WebSocketServer as Server

        options = {}
    server = Server(("127.0.0.1", 0), app, **options)
    server.start()
    print("serving on port", server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
