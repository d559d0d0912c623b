"""The body of a request, read strictly: to its Content-Length, or chunk by chunk (RFC 9112 §7.1).

pywsgi's own reader goes on after a broken chunk, so that the bytes behind the break are served as
the next request; it asks for a whole chunk at once, however long the client says that the chunk is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.exceptions import ClientDisconnected

from .request_head import CONTROL, NAME

__all__ = ["BrokenBody", "RequestBody", "SlowBody"]

_PIECE = 65536  # bytes that are asked for at once, whatever length the client has announced
_LONGEST_LINE = 4096  # bytes of a line with the size of a chunk
_MOST_EXTRA = 16384  # bytes of all chunk extensions and trailers of a body (RFC 9112 §7.1.1)

# Spaces are allowed before the semicolon only, and no control character but HTAB (§7.1.1).
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?)\r\n")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BrokenBody(ClientDisconnected, OSError):
    """A body that is no valid body, or that the client did not send to its end.

    An application that reads such a body is interrupted by this exception. Flask answers 400 for
    it, without a traceback.
    """


class SlowBody(BrokenBody):
    """A body for which the client kept the server waiting for too long. Flask answers 408."""

    code = 408
    description = "The body of the request came too slowly."


class RequestBody:
    """``wsgi.input``: the body of one request.

    :param rfile: the stream of the connection, behind the head of the request.
    :param length: bytes, from the Content-Length header field; None for a request without one.
    :param chunked: whether the body has Transfer-Encoding chunked.
    :param proceed: called with a response 100 before the first read; None if the client does not
        wait for it.

    All reads raise :class:`BrokenBody` from the first broken or missing byte on, and its kind
    :class:`SlowBody` once the client was too slow.
    """

    __slots__ = ("_chunked", "_extra", "_left", "_proceed", "broken", "rfile", "slow")

    def __init__(
        self,
        rfile: Any,
        length: int | None,
        *,
        chunked: bool = False,
        proceed: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.rfile = rfile
        #: What is wrong with the body; empty as long as nothing is.
        self.broken = ""
        self._chunked = chunked  # and the last chunk has not come
        self._left = 0 if chunked else length or 0  # bytes of the body, or of the current chunk
        self._extra = 0  # bytes of chunk extensions and trailers so far
        self._proceed = proceed
        #: Whether the client has kept the server waiting for too long.
        self.slow = False

    # -- for the application (PEP 3333) ----------------------------------------------------

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes, fewer at the end of the body only; all without a size."""
        return b"".join(self._pieces(size, self.rfile.read))

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line with its line feed, at most so many bytes of it."""
        pieces: list[bytes] = []
        for piece in self._pieces(size, self.rfile.readline):
            pieces.append(piece)
            if piece.endswith(b"\n"):
                break
        return b"".join(pieces)

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Return all lines."""
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    # -- for the server --------------------------------------------------------------------

    def _discard(self) -> None:
        """Read what the application has left; called by pywsgi."""
        self._proceed = None
        try:
            for _ in self._pieces(None, self.rfile.read):
                pass
        except BrokenBody:
            pass  # the handler looks at what is broken, and closes the connection

    # -- reading ---------------------------------------------------------------------------

    def _pieces(self, size: int | None, read: Callable[[int], bytes]) -> Iterator[bytes]:
        """Yield bytes up to a size or to the end of the body."""
        left = -1 if size is None else size
        while left:
            if not self._left and not self._next_chunk():
                return
            most = min(self._left, _PIECE)
            piece = self._ask(read, most if left < 0 else min(left, most))
            if not piece:
                raise self._break("the client left in the middle of the body")
            self._left -= len(piece)
            left -= len(piece) if left > 0 else 0
            if not self._left and self._chunked and self._ask(self.rfile.read, 2) != b"\r\n":
                raise self._break("a chunk is longer than its size")
            yield piece

    def _next_chunk(self) -> bool:
        """Read the size of the next chunk; False at the end of the body."""
        if self.broken:
            raise self._error()
        if not self._chunked:
            return False
        line = self._line()
        chunk = _CHUNK.fullmatch(line)
        if chunk is None:
            raise self._break("a line is not the size of a chunk (RFC 9112 §7.1)")
        self._count(len(chunk[2]))
        self._left = int(chunk[1], 16)
        if not self._left:
            self._read_trailers()
            self._chunked = False
        return bool(self._left)

    def _read_trailers(self) -> None:
        """Read the fields behind the last chunk, which nobody is given (§7.1.2)."""
        while (line := self._line()) != b"\r\n":
            name, colon, value = line[:-2].partition(b":")
            if not (colon and line.endswith(b"\r\n") and NAME.fullmatch(name)):
                raise self._break("a trailer is not 'name: value' (RFC 9112 §7.1.2)")
            if CONTROL.search(value):
                raise self._break("the value of a trailer holds a control character")
            self._count(len(line))

    def _line(self) -> bytes:
        return self._ask(self.rfile.readline, _LONGEST_LINE)

    def _count(self, extra: int) -> None:
        """Bound what a client sends beside the body itself."""
        self._extra += extra
        if self._extra > _MOST_EXTRA:
            raise self._break(f"more than {_MOST_EXTRA} bytes of chunk extensions and trailers")

    def _ask(self, read: Callable[[int], bytes], most: int) -> bytes:
        """Wait for bytes of the connection; b"" at its end."""
        if self.broken:
            raise self._error()
        try:
            if self._proceed is not None:
                proceed, self._proceed = self._proceed, None
                proceed(_CONTINUE)
            return read(most)
        except TimeoutError as exc:
            self.slow = True
            raise self._break("it came too slowly") from exc
        except OSError as exc:
            raise self._break("the client left in the middle of the body") from exc

    def _break(self, reason: str) -> BrokenBody:
        self.broken = reason
        return self._error()

    def _error(self) -> BrokenBody:
        return SlowBody(self.broken) if self.slow else BrokenBody(self.broken)
