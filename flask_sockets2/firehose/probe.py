"""The application's part of ``flask firehose check``: an answer after a response 103.

The request carries a token that was signed with ``SECRET_KEY`` less than a minute ago: nobody
else gets a response 103 sent through a proxy that takes it for an answer. The view is not run.
"""

from __future__ import annotations

import time

from flask import Flask, Response, request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from .early import server_function

__all__ = ["HEADER", "PAUSE", "answer", "token"]

HEADER = "Firehose-Check"
PAUSE = 0.5  # seconds between a response 103 and the answer

_MAX_AGE = 60  # seconds


def token(app: Flask) -> str:
    """Return what the request of a check carries.

    :raises RuntimeError: when the application has no ``SECRET_KEY``.
    """
    if not app.secret_key:
        raise RuntimeError(
            "the application has no SECRET_KEY, by which the deployment knows who asks: set it"
        )
    signed = _serializer(app).dumps("103")
    return signed if isinstance(signed, str) else signed.decode()


def answer(app: Flask) -> Response | None:
    """Answer the request of a check; None for every other.

    The header ``Firehose-Check`` says what was done: ``sent``; ``http/1.0``, of the hop in front;
    ``none``, where the server can send none.
    """
    signed = request.headers.get(HEADER)
    if signed is None or not app.secret_key:
        return None
    try:
        _serializer(app).loads(signed, max_age=_MAX_AGE)
    except BadSignature:
        return None
    said = "sent"
    send = server_function(request.environ)
    if request.environ.get("SERVER_PROTOCOL", "") < "HTTP/1.1":
        said = "http/1.0"
    elif send is None:
        said = "none"
    else:
        send([("Link", "</>; rel=preconnect")])
        time.sleep(PAUSE)
    headers = {HEADER: said, "Cache-Control": "no-store"}
    return Response(f"{HEADER}: {said}\n", mimetype="text/plain", headers=headers)


def _serializer(app: Flask) -> URLSafeTimedSerializer:
    assert app.secret_key is not None
    return URLSafeTimedSerializer(app.secret_key, salt="flask-sockets2-firehose-check")
