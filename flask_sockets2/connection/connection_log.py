"""Log lines that WebSockets and event streams share, in one wording."""

from __future__ import annotations

import logging

__all__ = ["STREAM_LOG", "WEBSOCKET_LOG", "ConnectionLog"]


class ConnectionLog:
    """Logs the events of one kind of connection.

    :param logger: the logger of this kind.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def opened(self, path: str | None, address: str | None) -> None:
        """Log that a client has connected."""
        self._logger.info(
            "open %.200r from %.100r",
            path,
            address,
            extra={"event": "open", "path": path and path[:200], "address": address},
        )

    def too_slow(self, path: str | None, send_buffer: int) -> None:
        """Log that a client reads the messages of its channels too slowly."""
        self._logger.info(
            "too slow %.200r: more than %s bytes kept back (SOCKETS_SEND_BUFFER)",
            path,
            send_buffer,
            extra={"event": "too_slow", "path": path and path[:200]},
        )

    def dropped(self, path: str | None, reason: str) -> None:
        """Log that a connection is dropped because its client has stopped reading."""
        self._logger.info(
            "dropped %.200r: %s",
            path,
            reason,
            extra={"event": "dropped", "path": path and path[:200]},
        )

    def evicted(self, path: str | None, held: int) -> None:
        """Log that a connection is closed because all connections together hold too much memory."""
        self._logger.info(
            "evicted %.200r: all connections together hold too much (SOCKETS_MAX_BUFFERED), "
            "and this one %s bytes",
            path,
            held,
            extra={"event": "evicted", "path": path and path[:200]},
        )


WEBSOCKET_LOG = ConnectionLog(logging.getLogger("flask_sockets2.connection"))
STREAM_LOG = ConnectionLog(logging.getLogger("flask_sockets2.streams"))
