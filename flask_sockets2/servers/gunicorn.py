"""gunicorn worker for WebSockets and streams: ``gunicorn -k flask_sockets2.worker app:app``.

To drain, the worker stops accepting and waits until another worker accepts reconnecting clients.
Then the worker closes its WebSockets with 1001, in batches over the graceful timeout, and exits.
Unlike gunicorn's own pywsgi worker, this worker counts requests for ``max_requests``.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, signature
from time import monotonic
from types import FrameType, FunctionType
from typing import Any

import gevent
from gevent.monkey import MonkeyPatchWarning, is_module_patched
from gevent.pywsgi import WSGIHandler, WSGIServer
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.util import unquote_to_wsgi_str
from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler

from .gevent import WebSocketHandler, WebSocketServer, drain
from .hooks import Elapsed, Request, Response
from .patience import has_applications, http_settings, register
from .proxy_protocol import PREFIX_V1, ProxyHeader, parse_line, read_binary
from .request_head import RequestError, printable
from .rules import RequestRules
from .successor import await_successor
from .takeover import STOPPING

__all__ = ["Worker"]

_OURS = logging.getLogger("flask_sockets2")  # parent of all loggers of the package

_DRAIN_SHARE = 0.7  # of the graceful timeout; the rest is for the last closing handshakes
_WAIT_SHARE = 0.3  # of the drain time, at most, to wait for a successor


_PATCH_FIRST = (
    "--preload or an import in gunicorn.conf.py",
    "patch first, by two lines in gunicorn.conf.py: from gevent import monkey; monkey.patch_all()",
)
_AGENTS = {
    "newrelic": (
        "newrelic-admin",
        "start gunicorn without it, and begin the application with: import newrelic.agent; "
        "newrelic.agent.initialize()",
    ),
    "opentelemetry": (
        "opentelemetry-instrument",
        "set OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH=patch_all, by which it "
        "patches first",
    ),
}
"""Monitoring agents that import modules before gevent patches them: name, and the remedy."""


def _imported_early() -> tuple[str, str]:
    """Return the cause of imports before gevent's patching, and the remedy."""
    first = getattr(sys.modules.get("sitecustomize"), "__file__", None) or ""
    return next((said for agent, said in _AGENTS.items() if agent in first), _PATCH_FIRST)


def _check_application(application: Any) -> None:
    """Check that an application has the arguments of WSGI.

    :raises ValueError: if the arguments differ, for example those of an application factory.
    """
    try:
        called = signature(application)
    except (TypeError, ValueError):  # an application written in C
        return
    try:
        called.bind({}, None)
    except TypeError:
        fits = False
    else:
        # If all arguments are optional, the callable is probably a factory.
        variable = any(each.kind is Parameter.VAR_POSITIONAL for each in called.parameters.values())
        needless = all(each.default is not Parameter.empty for each in called.parameters.values())
        fits = variable or not needless
    if not fits:
        name = getattr(application, "__name__", type(application).__name__)
        raise ValueError(
            f"{name}{called} is not a WSGI application, which is called with environ and "
            "start_response; if it makes the application, call it, in quotes: "
            f'gunicorn -k flask_sockets2.worker "module:{name}()"'
        )


class _Handler(WebSocketHandler, PyWSGIHandler):  # type: ignore[misc]  # gunicorn is untyped
    """Handler with gunicorn's settings about requests, gunicorn's hooks and its access log."""

    #: Worker and rules; the worker sets both in a subclass.
    worker: Worker
    rules: RequestRules

    headers: Any
    client_address: Any
    #: Bytes of the response's body that were sent.
    sent = 0
    #: Address of the peer, which may be a proxy.
    peer: Any = None
    #: Client's address, if a proxy has sent the PROXY protocol.
    proxy_header: ProxyHeader | None = None
    _request: Request | None = None
    _refusal: RequestError | None = None
    _mounted = ("", "")

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        super().__init__(sock, address, server, rfile)
        self.peer = address
        self._is_forwarder = self.rules.trusts(address)

    # -- the head of a request -------------------------------------------------------------

    def _read_line(self) -> str:
        if self._requests > 1 or not self.rules.proxy_versions:
            line: str = super()._read_line()
            return line
        try:
            return self._read_behind_proxy_header()
        except RequestError as exc:  # pywsgi answers errors only in read_request()
            self._refusal = exc
            return PREFIX_V1

    def _read_behind_proxy_header(self) -> str:
        versions, came, header = self.rules.proxy_versions, False, None
        if 2 in versions:
            came, header = read_binary(self.rfile)
        line: str = super()._read_line()
        if 1 in versions and not came and line.startswith(PREFIX_V1):
            came, header = True, parse_line(line)
            line = super()._read_line()
        if came and not self.rules.may_speak_proxy_protocol(self.peer):
            raise RequestError("the peer may not speak the PROXY protocol (proxy_allow_ips)", 403)
        if header is not None:
            self.proxy_header = header
            self.client_address = header.client
        return line

    def read_request(self, raw_requestline: str) -> bool:
        if self._refusal is not None:
            self.requestline = raw_requestline
            raise self._refusal
        super().read_request(raw_requestline)
        self.command = self.rules.method(self.command)
        if self.headers.get("expect", "100-continue").lower() != "100-continue":
            raise RequestError("the header field Expect is not 100-continue", 417)
        if not self.rules.keeps_alive:
            self.close_connection = True
        scheme = self.rules.usual_scheme
        if self._is_forwarder:
            scheme = self.rules.scheme(self.headers.fields)
        self._request = request = Request(self, self.headers.fields, scheme)
        request.method = self.command
        self._call_pre_request(request)
        self.headers.fields = request.fields
        self.close_connection = request.must_close
        self._mounted = self.rules.split(request.fields, request.path)
        return True

    def admit(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return self.rules.admit(fields, trusted=self._is_forwarder)

    def _call_pre_request(self, request: Request) -> None:
        try:
            self.worker.cfg.pre_request(self.worker, request)
        except Exception as exc:
            self.worker.log.exception("Exception in pre_request hook")
            raise RequestError("the hook pre_request failed", 500) from exc

    def handle_one_request(self) -> Any:
        self.sent, self.headers_sent, self.response_headers = 0, False, []
        try:
            return super().handle_one_request()
        finally:
            if self._request is not None:  # the request was refused after pre_request
                self._call_post_request({}, None)

    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        request, (script_name, path) = self._request, self._mounted
        assert request is not None
        environ["REQUEST_METHOD"] = request.method
        environ["RAW_URI"] = request.uri
        environ["QUERY_STRING"] = request.query
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = script_name, unquote_to_wsgi_str(path)
        environ["wsgi.url_scheme"] = request.scheme
        if not isinstance(self.peer, tuple):
            self._name_ends(environ)
        if self.proxy_header is not None:
            environ.update(self.proxy_header.environ())
        return environ

    def _name_ends(self, environ: dict[str, Any]) -> None:
        """Set the addresses of a Unix socket's two ends, as gunicorn does."""
        host = environ.get("HTTP_HOST", "")
        name, colon, port = host.rpartition(":")
        if not colon or port.endswith("]"):  # an IPv6 address has colons, too
            name, port = host, ""
        usual = "443" if environ["wsgi.url_scheme"] == "https" else "80"
        environ["SERVER_NAME"], environ["SERVER_PORT"] = name, port or usual
        if self.proxy_header is None:
            environ["REMOTE_ADDR"] = ""

    # -- the response ----------------------------------------------------------------------

    def handle_one_response(self) -> None:
        environ = self.environ  # the access log uses another one
        try:
            super().handle_one_response()
        finally:
            self._call_post_request(environ, Response(self))

    def _call_post_request(self, environ: dict[str, Any], response: Response | None) -> None:
        request, self._request = self._request, None
        try:
            self.worker.cfg.post_request(self.worker, request, environ, response)
        except Exception:
            self.worker.log.exception("Exception in post_request hook")

    def _write(self, data: bytes) -> None:
        super()._write(data)
        self.sent += len(data)

    def _log_error(self, kind: Any, error: Any, trace: Any) -> None:
        # An application may call sys.exit(). A stopping worker raises SystemExit, too.
        if issubclass(kind, Exception) or (kind is SystemExit and self.worker.alive):
            where = printable(f"{self.command} {self.path}")
            self.worker.log.error("Error handling request %s", where, exc_info=(kind, error, trace))
        else:
            super()._log_error(kind, error, trace)

    # -- the access log --------------------------------------------------------------------

    def log_request(self) -> None:
        log = self.worker.log  # gevent wraps the server's log
        if not _is_logged(log):
            return
        self.requestline = printable((self.requestline or "").rstrip())
        fields = [] if self.environ is None else self.headers.fields
        request = Request(self, [(name, printable(value)) for name, value in fields], "")
        log.access(
            Response(self, printable),  # its texts may come from a client
            request,
            self._logged_environ(request),
            Elapsed(seconds=max(0.0, self.time_finish - self.time_start)),
        )

    def _logged_environ(self, request: Request) -> dict[str, Any]:
        """Return an environ for the access log, with escaped texts; also for an invalid head."""
        if self.environ is None:
            address = self.client_address
            return {
                "REMOTE_ADDR": str(address[0]) if isinstance(address, tuple) and address else "-",
                "REQUEST_METHOD": request.method,
                "RAW_URI": request.uri,
                "SERVER_PROTOCOL": self.requestline.rpartition(" ")[2],
            }
        # The environ holds decoded texts from clients: %0a in a path is a line break.
        environ = {
            name: printable(value) if isinstance(value, str) else value
            for name, value in self.environ.items()
        }
        # gunicorn decodes the value of %(u)s only after this method.
        if not _names_user(environ.get("HTTP_AUTHORIZATION", "")):
            environ.pop("HTTP_AUTHORIZATION", None)
        return environ


def _is_logged(log: Any) -> bool:
    """Return whether gunicorn's logger needs requests: the log is on, or its class is your own."""
    own = getattr(type(log), "access", None) is not Logger.access
    return own or bool(log.access_log_enabled)


def _names_user(authorization: str) -> bool:
    """Return whether the user name in a Basic ``Authorization`` (RFC 7617) is printable."""
    try:
        credentials = base64.b64decode(authorization.partition(" ")[2])
        return credentials.partition(b":")[0].decode().isprintable()
    except (binascii.Error, ValueError):
        return False


class _Lines(logging.Handler):
    """Log handler that writes the package's lines to gunicorn's error log.

    If the application configures a handler of its own for them, this handler writes nothing.
    """

    #: gunicorn's logger, or the user's own logger object; None before the worker has started.
    log: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._others_take(record):
            return
        gunicorn = logging.getLogger("gunicorn.error")
        if gunicorn.hasHandlers():
            if gunicorn.isEnabledFor(record.levelno):
                gunicorn.handle(record)
        elif self.log is not None:
            self.log.log(record.levelno, "%s", self.format(record))
        elif logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)  # Python's default without any handler

    def _others_take(self, record: logging.LogRecord) -> bool:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


_lines = _Lines()


class _Server(WebSocketServer):
    """Server that drains its connections after it has stopped accepting.

    :param worker: worker that owns the server.
    """

    def __init__(self, *args: Any, worker: Worker, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drain_time = worker.cfg.graceful_timeout * _DRAIN_SHARE
        self._worker = worker

    def update_environ(self) -> None:
        if isinstance(self.address, tuple):  # pywsgi would query DNS
            self.environ.setdefault("SERVER_NAME", str(self.address[0]))
        super().update_environ()

    def _drain(self) -> None:
        began = monotonic()
        # A worker that stops because of max_requests is replaced only after it has exited.
        if self._worker.told_to_end:
            await_successor(
                self.family,
                self.address,
                self.drain_time * _WAIT_SHARE,
                kept=self._worker.sockets_are_kept,
            )
        drain(max(0.0, self.drain_time - (monotonic() - began)))


def _combined(theirs: Any, ours: type[Any]) -> type[Any]:
    """Return a subclass of both classes.

    :param theirs: handler or server class of gevent or gunicorn, set by a subclass of the worker.
    :param ours: our own handler or server class.
    :raises TypeError: if the two cannot be combined.
    """
    if isinstance(theirs, type) and issubclass(theirs, ours):
        return theirs
    bases = getattr(theirs, "__mro__", ())
    foreign = any(base.__module__.startswith("geventwebsocket") for base in bases)
    if not foreign and (WSGIHandler in bases or WSGIServer in bases):
        return type(theirs.__name__, (theirs, ours), {})
    raise TypeError(
        f"{theirs!r} cannot serve for flask_sockets2.worker: let it be a subclass of "
        f"flask_sockets2.{'WebSocketHandler' if ours is _Handler else 'WebSocketServer'}"
    )


class Worker(GeventPyWSGIWorker):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn worker on gevent, whose requests may become WebSockets or streams."""

    #: Handler and server class; a subclass may set other ones, also those of gevent and gunicorn.
    wsgi_handler: Any = _Handler
    server_class: Any = _Server
    wsgi: Any
    alive: bool
    cfg: Any
    #: True if a signal stops the worker, as at a reload, and not ``max_requests``.
    told_to_end = False
    _activated = False  # True if systemd has passed the sockets in
    _quitting = False

    @classmethod
    def setup(cls) -> None:
        """Record whether systemd has opened the sockets; gunicorn clears the variables later."""
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            cls._activated = True  # permanent: after a reload the variable is gone
        _OURS.addHandler(_lines)  # in the master, too, which may load the application

    @property
    def sockets_are_kept(self) -> bool:
        """Return whether a service manager has the sockets, too: by its protocol, or ``fd://3``."""
        return self._activated or any(isinstance(bind, int) for bind in self.cfg.address)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        server: Any = _combined(self.server_class, _Server)
        self.server_class = partial(server, worker=self)

    def patch(self) -> None:
        # A lock created before patching, for example in a ThreadPoolExecutor, blocks the worker.
        loaded = self.cfg.preload_app or has_applications()
        early = loaded and not is_module_patched("threading")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MonkeyPatchWarning)
            super().patch()
        late = [each for each in caught if issubclass(each.category, MonkeyPatchWarning)]
        for each in caught:
            if each not in late:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if late or early:
            said = "; ".join(str(each.message).partition(". ")[0] for each in late)
            importer, remedy = _imported_early()
            self.log.warning(
                "modules were imported before gevent could patch the standard library, by %s, so "
                "threads, TLS and waits may fail or stop the worker%s; %s",
                importer,
                f" ({said})" if said else "",
                remedy,
            )

    def load_wsgi(self) -> None:
        _lines.log = self.log
        if self.cfg.loglevel.lower() == "debug" and _OURS.level == logging.NOTSET:
            _OURS.setLevel(logging.DEBUG)
        with self._refusing():
            rules = RequestRules(self.cfg)
        super().load_wsgi()
        with self._refusing():
            rules.read_environment()
            _check_application(self.wsgi)
        config = getattr(self.wsgi, "config", None)
        if isinstance(config, dict):  # an application without this package
            register(config)
        http_settings()  # an invalid setting stops the worker now, not each connection later
        settings = {
            "worker": self,
            "rules": rules,
            "keep_alive_timeout": self.cfg.keepalive,
            "max_request_line": rules.max_request_line,
            "max_header_fields": rules.max_header_fields,
            "max_header_size": rules.max_header_size,
            "_application": self.wsgi,
        }
        self.wsgi_handler = type("Handler", (_combined(self.wsgi_handler, _Handler),), settings)
        self.wsgi = self._counted(self.wsgi)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Stop gunicorn with one log line if a setting is invalid."""
        try:
            yield
        except ValueError as exc:
            self.log.critical("%s", exc)
            sys.exit(Arbiter.APP_LOAD_ERROR)  # so that gunicorn does not start another worker

    def _counted(self, application: Any) -> Callable[..., Any]:
        if not isinstance(application, FunctionType):
            # A direct call of the method avoids C frames, whose stack each waiting greenlet copies.
            application = application.__call__

        def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
            if not self.alive:  # a stopping worker accepts for up to a second more
                environ[STOPPING] = True
            return application(environ, start_response)

        return counted

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.told_to_end = True
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        if self._quitting:  # at Ctrl-C the terminal and then gunicorn's master send a signal
            return
        self._quitting = True
        gevent.spawn(drain, 0.0)  # not in here: a signal may interrupt a send
        super().handle_quit(sig, frame)
