"""gunicorn's worker: ``gunicorn -k flask_sockets2.worker app:app``.

It counts requests for ``max_requests``, which gunicorn's own pywsgi worker does not, and drains: it
stops accepting, waits until those who come back find somebody who does, closes its WebSockets with
1001 in batches over the graceful timeout, and ends.
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

_OURS = logging.getLogger("flask_sockets2")  # all loggers of the package are below it

_DRAIN_SHARE = 0.7  # of the graceful timeout; the rest is for the last closing handshakes
_WAIT_SHARE = 0.3  # of that, at most, for a successor


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
"""Agents that come before everything else, with what to say of each."""


def _imported_early() -> tuple[str, str]:
    """Return what imported modules before gevent could patch them, and the remedy."""
    first = getattr(sys.modules.get("sitecustomize"), "__file__", None) or ""
    return next((said for agent, said in _AGENTS.items() if agent in first), _PATCH_FIRST)


def _check_application(application: Any) -> None:
    """See that an application can be called as WSGI does it.

    :raises ValueError: when it cannot, for example because it is a factory.
    """
    try:
        called = signature(application)
    except (TypeError, ValueError):  # written in C
        return
    try:
        called.bind({}, None)
    except TypeError:
        fits = False
    else:
        # Arguments that need not be given are those of a factory.
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
    """Our handler with gunicorn's settings about requests, its hooks and its access log."""

    #: Set by the worker, in a class of its own.
    worker: Worker
    rules: RequestRules

    headers: Any
    client_address: Any
    #: Bytes of the response's body that were sent.
    sent = 0
    #: Address of the peer, which may be a proxy.
    peer: Any = None
    #: The client's address, if a proxy has sent it by the PROXY protocol.
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
        except RequestError as exc:  # pywsgi answers errors only in the next step
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
            if self._request is not None:  # it was refused after pre_request
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
        """Give both ends of a Unix socket a name, as gunicorn does."""
        host = environ.get("HTTP_HOST", "")
        name, colon, port = host.rpartition(":")
        if not colon or port.endswith("]"):  # an address of IPv6 has colons, too
            name, port = host, ""
        usual = "443" if environ["wsgi.url_scheme"] == "https" else "80"
        environ["SERVER_NAME"], environ["SERVER_PORT"] = name, port or usual
        if self.proxy_header is None:
            environ["REMOTE_ADDR"] = ""

    # -- the response ----------------------------------------------------------------------

    def handle_one_response(self) -> None:
        environ = self.environ  # the access log has another one
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
        # An application may call sys.exit(); a worker that is told to end raises that, too.
        if issubclass(kind, Exception) or (kind is SystemExit and self.worker.alive):
            where = printable(f"{self.command} {self.path}")
            self.worker.log.error("Error handling request %s", where, exc_info=(kind, error, trace))
        else:
            super()._log_error(kind, error, trace)

    # -- the access log --------------------------------------------------------------------

    def log_request(self) -> None:
        log = self.worker.log  # the server's is wrapped by gevent
        if not _is_logged(log):
            return
        self.requestline = printable((self.requestline or "").rstrip())
        fields = [] if self.environ is None else self.headers.fields
        request = Request(self, [(name, printable(value)) for name, value in fields], "")
        log.access(
            Response(self, printable),  # it may repeat what a client has sent
            request,
            self._logged_environ(request),
            Elapsed(seconds=max(0.0, self.time_finish - self.time_start)),
        )

    def _logged_environ(self, request: Request) -> dict[str, Any]:
        """Return what the access log may have of an environ, or of a head that was no request."""
        if self.environ is None:
            address = self.client_address
            return {
                "REMOTE_ADDR": str(address[0]) if isinstance(address, tuple) and address else "-",
                "REQUEST_METHOD": request.method,
                "RAW_URI": request.uri,
                "SERVER_PROTOCOL": self.requestline.rpartition(" ")[2],
            }
        # What clients say of themselves is in there, decoded: %0a in a path is a line break.
        environ = {
            name: printable(value) if isinstance(value, str) else value
            for name, value in self.environ.items()
        }
        # gunicorn decodes what %(u)s says, and does so after us.
        if not _names_user(environ.get("HTTP_AUTHORIZATION", "")):
            environ.pop("HTTP_AUTHORIZATION", None)
        return environ


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


class _Lines(logging.Handler):
    """Writes the package's log lines as gunicorn writes its own.

    It writes nothing if the application has configured a handler for them, before or later.
    """

    #: gunicorn's logger, which may be an object of the user's own, once there is a worker.
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
            logging.lastResort.handle(record)  # as without this handler

    def _others_take(self, record: logging.LogRecord) -> bool:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


_lines = _Lines()


class _Server(WebSocketServer):
    """A server that drains once it has stopped accepting.

    :param worker: whose it is.
    """

    def __init__(self, *args: Any, worker: Worker, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drain_time = worker.cfg.graceful_timeout * _DRAIN_SHARE
        self._worker = worker

    def update_environ(self) -> None:
        if isinstance(self.address, tuple):  # pywsgi would ask the DNS
            self.environ.setdefault("SERVER_NAME", str(self.address[0]))
        super().update_environ()

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


def _combined(theirs: Any, ours: type[Any]) -> type[Any]:
    """Return a subclass of both classes.

    :param theirs: a handler or server of gevent or gunicorn, which a subclass of the worker sets.
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
    """A gunicorn worker on gevent whose requests may become WebSockets."""

    #: A subclass may set handlers and servers of its own, those of gevent and gunicorn included.
    wsgi_handler: Any = _Handler
    server_class: Any = _Server
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
        _OURS.addHandler(_lines)  # in the master, too, which may load the application

    @property
    def sockets_are_kept(self) -> bool:
        """Whether a service manager has the sockets, too: by its protocol, or as ``fd://3``."""
        return self._activated or any(isinstance(bind, int) for bind in self.cfg.address)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        server: Any = _combined(self.server_class, _Server)
        self.server_class = partial(server, worker=self)

    def patch(self) -> None:
        # A lock that the application made before, as in a ThreadPoolExecutor, stops the worker.
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
        if isinstance(config, dict):  # of an application without this package
            register(config)
        http_settings()  # a wrong one ends the worker now and not each connection later
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
        """End gunicorn, with one line in the log, if a setting is refused."""
        try:
            yield
        except ValueError as exc:
            self.log.critical("%s", exc)
            sys.exit(Arbiter.APP_LOAD_ERROR)  # so that gunicorn does not start another worker

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
