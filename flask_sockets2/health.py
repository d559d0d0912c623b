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

import os
from typing import Any

from flask import Response, jsonify, request

from .extension import State
from .servers.environ import STOPPING

__all__ = ["serve_health"]

# Flask would answer OPTIONS by itself, always with 200, and it is what HAProxy asks by default.
_METHODS = ("GET", "HEAD", "OPTIONS")


def serve_health(state: State) -> None:
    """Add the route that ``SOCKETS_HEALTH_ROUTE`` names.

    :raises ValueError: when ``SOCKETS_DRAIN_FILE`` is no path.
    """
    config = state.app.config
    route = config.get("SOCKETS_HEALTH_ROUTE")
    file = config.get("SOCKETS_DRAIN_FILE")
    if file is not None and not (isinstance(file, str | os.PathLike) and os.fspath(file)):
        raise ValueError(f"SOCKETS_DRAIN_FILE must be the path of a file or None, got {file!r}")
    if route is None:
        return

    def flask_sockets2_health() -> Response:
        draining = STOPPING in request.environ or (file is not None and os.path.exists(file))
        response = jsonify(_body(state, "draining" if draining else "ok"))
        response.headers["Cache-Control"] = "no-store"
        if draining:
            response.status_code = 503
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
