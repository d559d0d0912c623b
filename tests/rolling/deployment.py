"""What is restarted: Valkey, gunicorn, and a proxy with the block of the deployment page."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.brokers.servers import RedisServer
from tests.processes import Server, Servers, accepts, make_certificate, servers_in
from tests.proxies import (
    caddy_in_front,
    haproxy_in_front,
    nginx_in_front,
    reload_caddy,
    reload_haproxy,
    reload_nginx,
)
from tests.test_docs import DEPLOYMENT, blocks

__all__ = ["ACTS", "OF_PROXIES", "PROXIES", "Deployment", "deployed"]

APPLICATION = Path(__file__).with_name("application.py").read_text()
WORKERS = 2
LOADED = "a worker has loaded the application"

#: Caddy speaks TLS, as its block has it, which takes most of what the clients' process can do.
PROXIES = ("none", "nginx", "haproxy", "caddy", "caddy-plain")


class Deployment:
    """Servers that run; see :func:`deployed`.

    :ivar gunicorn: its first main process.
    :ivar context: for who connects, where the proxy speaks TLS.
    """

    def __init__(
        self,
        servers: Servers,
        broker: RedisServer,
        proxy: str,
        *,
        connections: int,
        graceful_timeout: int,
        settings: Mapping[str, object],
    ) -> None:
        self.proxy_name = proxy
        self.broker_url = broker.url
        self._servers = servers
        self._graceful_timeout = graceful_timeout
        settings = {"SOCKETS_BROKER_URL": broker.url, **settings}
        self.gunicorn = servers.gunicorn(
            APPLICATION,
            args=[
                *("-w", str(WORKERS), "--worker-connections", "5000"),
                *("--graceful-timeout", str(graceful_timeout)),
            ],
            environ={f"ROLLING_{name}": str(value) for name, value in settings.items()},
        )
        self._wait_for_loaded(WORKERS)
        self.context: ssl.SSLContext | None = None
        self.proxy: Server | None = None
        self._reload: Callable[[Server], None] | None = None
        upstream = self.gunicorn.port
        if proxy == "nginx":
            (block,) = blocks(DEPLOYMENT, "nginx")
            self.proxy = nginx_in_front(servers, upstream, block, connections=2 * connections)
            self._reload = reload_nginx
        elif proxy == "haproxy":
            block = _text("frontend public")
            self.proxy = haproxy_in_front(servers, upstream, block, connections=connections)
            self._reload = reload_haproxy
        elif proxy.startswith("caddy"):
            certificate = None
            if proxy == "caddy":
                certificate = make_certificate(servers.folder)
                self.context = certificate.client_context()
            self.proxy = caddy_in_front(servers, upstream, _text("example.com"), certificate)
            self._reload = reload_caddy
        self.port = (self.proxy or self.gunicorn).port

    @property
    def workers(self) -> list[psutil.Process]:
        """Its workers, the oldest first."""
        children = psutil.Process(self.gunicorn.process.pid).children()
        return sorted(children, key=psutil.Process.create_time)

    @property
    def output(self) -> str:
        return self.gunicorn.output

    @property
    def _loaded(self) -> int:
        """How many workers have ever begun to serve."""
        return self.output.count(LOADED)

    def _wait_for_loaded(self, count: int) -> None:
        self.gunicorn.wait_for(lambda: self._loaded >= count, f"{count} workers")

    def _wait_for_the_end_of(self, workers: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs(workers, timeout=2 * self._graceful_timeout + 20)
        assert not left, f"{left} have not ended:\n{self.output}"

    # -- what is done to it ----------------------------------------------------------------

    def hup(self) -> None:
        """Reload gunicorn."""
        old = self.workers
        self.gunicorn.process.send_signal(signal.SIGHUP)
        self._wait_for_the_end_of(old)

    def ttin_ttou(self) -> None:
        """Have one worker more, and then the oldest no more."""
        oldest, loaded = self.workers[0], self._loaded
        self.gunicorn.process.send_signal(signal.SIGTTIN)
        self._wait_for_loaded(loaded + 1)
        self.gunicorn.process.send_signal(signal.SIGTTOU)
        self._wait_for_the_end_of([oldest])

    def term(self) -> None:
        """End a worker, which gunicorn replaces."""
        oldest, loaded = self.workers[0], self._loaded
        oldest.terminate()
        self._wait_for_the_end_of([oldest])
        self._wait_for_loaded(loaded + 1)

    def usr2(self) -> None:
        """Start another gunicorn on the same socket, and then end the first."""
        main, old, loaded = self.gunicorn.process, self.workers, self._loaded
        main.send_signal(signal.SIGUSR2)
        self._wait_for_loaded(loaded + WORKERS)
        main.send_signal(signal.SIGTERM)
        self._wait_for_the_end_of(old)
        main.wait(2 * self._graceful_timeout)

    def reload(self) -> None:
        """Reload the proxy."""
        assert self.proxy is not None
        assert self._reload is not None
        self._reload(self.proxy)

    def restart(self) -> None:
        """Stop the proxy and start it again, which cuts all connections."""
        assert self.proxy is not None
        args = self.proxy.process.args
        assert isinstance(args, list)
        environ = psutil.Process(self.proxy.process.pid).environ()
        environ = {name: value for name, value in environ.items() if name.startswith("XDG_")}
        self.proxy.stop()
        self.proxy = self._servers.start(args, environ=environ)
        self.proxy.port = self.port
        self.proxy.wait_for(lambda: accepts(self.port), "it accepted connections")


@contextmanager
def deployed(
    proxy: str,
    folder: Path,
    *,
    clients: int,
    graceful_timeout: int = 30,
    **settings: object,
) -> Iterator[Deployment]:
    """Have it all run within the block.

    :param proxy: one of :data:`PROXIES`.
    :param folder: an empty directory.
    :param clients: that it has to bear.
    :param graceful_timeout: of gunicorn, in seconds.
    :param settings: of the application.
    """
    broker = RedisServer()
    try:
        with servers_in(folder) as servers:
            yield Deployment(
                servers,
                broker,
                proxy,
                connections=2 * clients + 200,  # those that end are still there
                graceful_timeout=graceful_timeout,
                settings=settings,
            )
    finally:
        broker.remove()


ACTS: dict[str, Callable[[Deployment], None]] = {
    "hup": Deployment.hup,
    "ttin-ttou": Deployment.ttin_ttou,
    "term": Deployment.term,
    "usr2": Deployment.usr2,
    "reload": Deployment.reload,
    "restart": Deployment.restart,
}

OF_PROXIES = frozenset({"reload", "restart"})


def _text(part: str) -> str:
    """The one block of the deployment page that holds a text."""
    (block,) = [block for block in blocks(DEPLOYMENT, "text") if part in block]
    return block
