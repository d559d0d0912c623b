"""A rate-limited log, which a flood of events cannot fill."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Lock
from time import monotonic
from typing import Any

__all__ = ["ThrottledLog"]


class ThrottledLog:
    """Logs each kind of line once a second at most, with the number of lines left out since.

    :param logger: the logger to write to.

    Any thread may log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: dict[str, tuple[float, int]] = {}  # when logged last, and left out since
        self._lock = Lock()  # guards _kinds

    def info(self, kind: str, message: str, *args: object) -> None:
        """Log for information, or count the line; see :meth:`warning`."""
        self._write(logging.INFO, kind, message, args)

    def failure(
        self, kind: str, message: str, *args: object, extra: Mapping[str, object] | None = None
    ) -> None:
        """Log an error without a traceback, or count the line; see :meth:`warning`."""
        self._write(logging.ERROR, kind, message, args, extra=extra)

    def warning(
        self, kind: str, message: str, *args: object, extra: Mapping[str, object] | None = None
    ) -> None:
        """Log a warning, or count the line if its kind was logged within the last second.

        :param kind: name of the kind; use few names, since all are stored.
        :param extra: further fields of the log record.
        """
        self._write(logging.WARNING, kind, message, args, extra=extra)

    def error(self, message: str, *args: object, error: BaseException) -> None:
        """Log an error with its traceback, or count the line; the kind is message and type."""
        kind = f"{type(error).__qualname__}: {message}"
        self._write(logging.ERROR, kind, message, args, exc_info=error)

    def _write(
        self, level: int, kind: str, message: str, args: tuple[object, ...], **how: Any
    ) -> None:
        with self._lock:
            now = monotonic()
            at, left_out = self._kinds.get(kind, (now - 1.0, 0))
            seldom = now - at >= 1.0
            self._kinds[kind] = (now, 0) if seldom else (at, left_out + 1)
        if not seldom:
            return
        if left_out:
            message, args = f"{message} (%s more since it was logged last)", (*args, left_out)
        self._logger.log(level, message, *args, **how)
