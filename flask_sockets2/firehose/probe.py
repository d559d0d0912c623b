"""The application's part of ``flask firehose check``: a 103, followed by a response.

The request must carry a token signed with ``SECRET_KEY`` in the last minute. Other clients cannot
request a 103 through a proxy that mistakes the 103 for the final response. No view is run.
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
    """Return the signed token for the request of a check.

    :raises RuntimeError: if the application has no ``SECRET_KEY``.
    """
    if not app.secret_key:
        raise RuntimeError(
            "the application has no SECRET_KEY, by which the deployment knows who asks: set it"
        )
    signed = _serializer(app).dumps("103")
    return signed if isinstance(signed, str) else signed.decode()


def answer(app: Flask) -> Response | None:
    """Return the response to a check, or None if the current request is not a check.

    The header ``Firehose-Check`` holds the result: ``sent``; ``http/1.0`` if the hop in front uses
    that version; ``none`` if the server cannot send a 103.
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
