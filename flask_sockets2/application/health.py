"""Health check for load balancers (``SOCKETS_HEALTH_ROUTE``).

The response is 200 while the worker serves, and 503 while it drains: the balancer then sends no
new clients, and open connections stay until they are closed. A stopping worker answers 503 by
itself, but accepts no connections a second later. To warn the balancer earlier, create the file
that ``SOCKETS_DRAIN_FILE`` names. A file reaches every worker of a machine under every server;
gunicorn has a meaning of its own for each signal.

If the broker cannot be reached, the body says so, but the status stays 200. All servers lose the
broker at once, and a balancer that removed them all would turn a disturbance into an outage.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from flask import Response, jsonify, request

from ..servers.takeover import STOPPING
from ..settings import read
from .settings import AppSettings
from .state import State

__all__ = ["serve_health"]

logger = logging.getLogger("flask_sockets2.sockets")

# HAProxy sends OPTIONS by default, and Flask itself would always answer OPTIONS with 200.
_METHODS = ("GET", "HEAD", "OPTIONS")


class _DrainFile:
    """The file that makes the worker drain; an inaccessible path counts as absent.

    An error is logged once, and does not drain: all servers may share the wrong setting, and a
    balancer that removed them all would cause an outage.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._told = ""

    def is_there(self) -> bool:
        there, problem = False, ""
        try:
            os.stat(self._path)
            there = True
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as exc:  # the latter for a null byte
            problem = str(exc)
        if problem and problem != self._told:
            logger.error(
                "SOCKETS_DRAIN_FILE cannot be looked at, so nobody is told to stay away: %s; name "
                "a file in a folder that the server's user may search",
                problem,
            )
        self._told = problem
        return there


def serve_health(state: State) -> None:
    """Add the route that ``SOCKETS_HEALTH_ROUTE`` names.

    :raises ValueError: if ``SOCKETS_DRAIN_FILE`` is set without ``SOCKETS_HEALTH_ROUTE``.
    """
    values = read(AppSettings, state.app.config)
    route, path = values.health_route, values.drain_file
    if route is None:
        if path is not None:
            raise ValueError(
                "SOCKETS_DRAIN_FILE is told by SOCKETS_HEALTH_ROUTE, which is not set; set it as "
                'well, as "/health", before Sockets(app)'
            )
        return
    file = None if path is None else _DrainFile(path)
    if file is not None:
        file.is_there()  # logs a wrong path at the start

    def flask_sockets2_health() -> Response:
        stopping = STOPPING in request.environ
        draining = stopping or (file is not None and file.is_there())
        response = jsonify(_body(state, "draining" if draining else "ok"))
        response.headers["Cache-Control"] = "no-store"
        if draining:
            response.status_code = 503
        if stopping:  # only under our worker; other servers may reject the field, PEP 3333
            response.headers["Connection"] = "close"
        return response

    state.app.add_url_rule(
        route,
        view_func=flask_sockets2_health,
        methods=_METHODS,
        provide_automatic_options=False,
    )


def _body(state: State, status: str) -> dict[str, Any]:
    body = {
        "status": status,
        "connections": len(state.connections),
        "streams": len(state.streams),
    }
    away = state.broker_away
    if away is not None:
        body["broker"] = "away" if away else "ok"
    return body
