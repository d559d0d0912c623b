"""Health: what a load balancer asks before it sends somebody here (``SOCKETS_HEALTH_ROUTE``).

200 says *serving*, 503 *draining*: send nobody new, those who are here stay until they are closed.
A worker that has begun to stop says so by itself, but a second later it accepts nothing any more.
So that the balancer knows before that, ``SOCKETS_DRAIN_FILE`` names a file that announces it: a
file since it reaches every worker of a machine, under every server, and gunicorn has a meaning of
its own for each signal.

A broker that is away is told in the body, and still 200: it is away for all servers at once, and a
balancer that took all of them out would turn a disturbance into an outage.
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

# Flask would answer OPTIONS by itself, always with 200, and it is what HAProxy asks by default.
_METHODS = ("GET", "HEAD", "OPTIONS")


class _DrainFile:
    """The file that announces the end; it counts as absent where it cannot be looked at.

    That is told by the log, and once: the answer is for all servers that have the same mistake, and
    a balancer that took all of them out would make an outage of it.
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

    :raises ValueError: when there is ``SOCKETS_DRAIN_FILE``, and no route to say so.
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
        file.is_there()  # what is wrong is logged at the start

    def flask_sockets2_health() -> Response:
        stopping = STOPPING in request.environ
        draining = stopping or (file is not None and file.is_there())
        response = jsonify(_body(state, "draining" if draining else "ok"))
        response.headers["Cache-Control"] = "no-store"
        if draining:
            response.status_code = 503
        if stopping:  # only our worker says so; other servers may not take it, PEP 3333
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
