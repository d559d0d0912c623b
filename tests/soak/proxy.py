"""nginx in front of the server; it is reloaded, and restarted at the same port."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

from tests.processes import Server, Servers, accepts, wait_until
from tests.proxies import AS_DOCUMENTED, nginx_in_front

__all__ = ["Proxy"]

_RESTART_TIMEOUT = 60.0  # seconds


class Proxy:
    """nginx, configured as the documentation says.

    :param upstream: port of the application.
    """

    def __init__(self, servers: Servers, upstream: int) -> None:
        self._servers = servers
        self._server = nginx_in_front(servers, upstream, AS_DOCUMENTED, connections=4096)
        self.port = self._server.port

    def reload(self) -> None:
        """Replace its worker; the old one goes on with the connections that it has."""
        self._server.process.send_signal(signal.SIGHUP)

    def restart(self, down: float) -> None:
        """Kill it with all of its connections, and start it again.

        :param down: seconds in between.
        """
        self._server.stop()
        time.sleep(down)
        self._server = self._start()

    def _start(self) -> Server:
        server = self._servers.start(list(self._server.command))
        server.port = self.port
        with suppress(TimeoutError):
            wait_until(lambda: accepts(self.port), "nginx to accept again", _RESTART_TIMEOUT)
        return server
