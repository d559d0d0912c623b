"""gunicorn's worker: ``gunicorn -k flask_sockets2.worker app:app``.

It counts requests for ``max_requests``, which gunicorn's own pywsgi worker does not, and drains: it
stops accepting, waits until those who come back find somebody who does, closes its WebSockets with
1001 in batches over the graceful timeout, and ends.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import FrameType, FunctionType
from typing import Any

import gevent
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler

from .environ import STOPPING
from .gevent import WebSocketHandler, WebSocketServer, drain
from .head import printable
from .successor import await_successor

__all__ = ["Worker"]

_DRAIN_SHARE = 0.7  # of the graceful timeout; the rest is for the last closing handshakes
_WAIT_SHARE = 0.3  # of that, at most, for a successor


class _Handler(WebSocketHandler, PyWSGIHandler):  # type: ignore[misc]  # gunicorn is untyped
    """Our handler with gunicorn's access log."""

    headers: Any
    client_address: Any

    def log_request(self) -> None:
        if not _is_logged(self.server.log):
            return
        if self.environ is None:  # it was no request, for which gunicorn's log is not prepared
            self.environ, self.headers, self.response_headers = self._of_no_request(), {}, []
        # What clients say of themselves is in there, decoded: %0a in a path is a line break.
        self.environ = {
            name: printable(value) if isinstance(value, str) else value
            for name, value in self.environ.items()
        }
        # gunicorn decodes what %(u)s says, and does so after us.
        if not _names_user(self.environ.get("HTTP_AUTHORIZATION", "")):
            self.environ.pop("HTTP_AUTHORIZATION", None)
        self.headers = {name: printable(value) for name, value in self.headers.items()}
        super().log_request()

    def _of_no_request(self) -> dict[str, str]:
        method, _, rest = self.requestline.rstrip().partition(" ")
        target, _, version = rest.rpartition(" ")
        address = self.client_address
        return {
            "REMOTE_ADDR": str(address[0]) if isinstance(address, tuple) and address else "-",
            "REQUEST_METHOD": method,
            "RAW_URI": target,
            "SERVER_PROTOCOL": version,
        }


def _is_logged(log: Any) -> bool:
    """Whether a logger of gunicorn does anything with a request; one of one's own may count it."""
    own = getattr(type(log), "access", None) is not Logger.access
    return own or bool(log.access_log_enabled)


def _names_user(authorization: str) -> bool:
    """Whether the name in an ``Authorization`` of scheme Basic (RFC 7617) can be printed."""
    try:
        credentials = base64.b64decode(authorization.partition(" ")[2])
        return credentials.partition(b":")[0].decode().isprintable()
    except (binascii.Error, ValueError):
        return False


class _Server(WebSocketServer):
    """A server that drains once it has stopped accepting.

    :param worker: whose it is.
    """

    def __init__(self, *args: Any, worker: Worker, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drain_time = worker.cfg.graceful_timeout * _DRAIN_SHARE
        self._worker = worker

    def _drain(self) -> None:
        began = monotonic()
        # Who leaves because of max_requests is replaced only when it is gone.
        if self._worker.told_to_end:
            await_successor(
                self.family,
                self.address,
                self.drain_time * _WAIT_SHARE,
                kept=self._worker.sockets_are_kept,
            )
        drain(max(0.0, self.drain_time - (monotonic() - began)))


class Worker(GeventPyWSGIWorker):  # type: ignore[misc]  # gunicorn is untyped
    """A gunicorn worker on gevent whose requests may become WebSockets."""

    wsgi_handler: Any = _Handler
    wsgi: Any
    alive: bool
    cfg: Any
    #: Whether it ends because of a signal, as at a reload, and not by itself.
    told_to_end = False
    _activated = False  # systemd has passed the sockets in
    _quitting = False

    @classmethod
    def setup(cls) -> None:
        """Take note of who has opened the sockets; gunicorn calls it before it forgets that."""
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            cls._activated = True  # for good: after a reload it is not in the environment

    @property
    def sockets_are_kept(self) -> bool:
        """Whether a service manager has the sockets, too: by its protocol, or as ``fd://3``."""
        return self._activated or any(isinstance(bind, int) for bind in self.cfg.address)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = partial(_Server, worker=self)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        config = getattr(self.wsgi, "config", None)
        handler: dict[str, Any] = {"keep_alive_timeout": self.cfg.keepalive}
        if isinstance(config, dict) and "SOCKETS_HANDSHAKE_TIMEOUT" in config:
            timeout = config["SOCKETS_HANDSHAKE_TIMEOUT"]
            if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
                raise ValueError(
                    f"SOCKETS_HANDSHAKE_TIMEOUT must be a number of seconds, got {timeout!r}"
                )
            handler["handshake_timeout"] = timeout
        self.wsgi_handler = type("Handler", (_Handler,), handler)  # this worker's own settings
        self.wsgi = self._counted(self.wsgi)

    def _counted(self, application: Any) -> Callable[..., Any]:
        if not isinstance(application, FunctionType):
            # A call of the method itself does not go through C, whose stack each waiting greenlet
            # keeps a copy of.
            application = application.__call__

        def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
            if not self.alive:  # it accepts for up to a second more
                environ[STOPPING] = True
            return application(environ, start_response)

        return counted

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.told_to_end = True
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        if self._quitting:  # at Ctrl-C the terminal signals us, and then gunicorn's master does
            return
        self._quitting = True
        gevent.spawn(drain, 0.0)  # not in here: a signal may come in the middle of a send
        super().handle_quit(sig, frame)
