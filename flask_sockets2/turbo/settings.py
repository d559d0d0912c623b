"""Settings of Turbo."""

from __future__ import annotations

from dataclasses import dataclass

from ..application.signing import MAX_AGE
from ..settings import ROUTE, SECONDS, or_none, setting, text

__all__ = ["TurboSettings"]

_JS_URL = text("URL", "a URL, https://… or a path that begins with a slash", r"(https?:/)?/\S+")


@dataclass(frozen=True, slots=True)
class TurboSettings:
    """Settings of Turbo.

    :param websocket_route: Path to which pages with Turbo connect; ``None`` for no connection. Set
        the key before ``Turbo(app)``.
    :param stream_max_age: Time for which the signed name of a stream is valid; ``None`` for ever.
    :param js_url: A turbo.js of your own: ``docs/turbo.rst``.
    """

    websocket_route: str | None = setting("TURBO_WEBSOCKET_ROUTE", "/turbo-stream", ROUTE)
    stream_max_age: float | None = setting("TURBO_STREAM_MAX_AGE", MAX_AGE, or_none(SECONDS))
    js_url: str | None = setting("TURBO_JS_URL", None, or_none(_JS_URL))
