"""Request body, read strictly: up to Content-Length, or chunk by chunk (RFC 9112 §7.1).

pywsgi's own reader continues after a broken chunk, and serves the bytes behind it as the next
request. pywsgi also reads a whole chunk at once, however large the client declares the chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.exceptions import ClientDisconnected

from .request_head import CONTROL, NAME

__all__ = ["BrokenBody", "RequestBody", "SlowBody"]

_PIECE = 65536  # bytes read at once, even if the client declares a longer chunk
_LONGEST_LINE = 4096  # bytes of a line with the size of a chunk
_MOST_EXTRA = 16384  # bytes of all chunk extensions and trailers of a body (RFC 9112 §7.1.1)

# Spaces are allowed before the semicolon only, and no control character but HTAB (§7.1.1).
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?)\r\n")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BrokenBody(ClientDisconnected, OSError):
    """Invalid or incomplete request body.

    A view that reads the body gets this exception. Flask answers 400, without a traceback.
    """


class SlowBody(BrokenBody):
    """Request body that the client sent too slowly. Flask answers 408."""

    code = 408
    description = "The body of the request came too slowly."


class RequestBody:
    """``wsgi.input``: the body of one request, for the application to read.

    :param rfile: the stream of the connection, behind the head of the request.
    :param length: bytes, from the Content-Length header field; None if the field is missing.
    :param chunked: True if the body has Transfer-Encoding chunked.
    :param proceed: called with a response 100 before the first read; None if the client does not
        wait for that response.

    A read that reaches a broken or missing byte raises :class:`BrokenBody`, and so do all later
    reads. If the client was too slow, the reads raise the subclass :class:`SlowBody`.
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
        #: Reason why the body is broken; empty if the body is valid so far.
        self.broken = ""
        self._chunked = chunked  # False after the last chunk
        self._left = 0 if chunked else length or 0  # bytes of the body, or of the current chunk
        self._extra = 0  # bytes of chunk extensions and trailers so far
        self._proceed = proceed
        #: True if the client has sent the body too slowly.
        self.slow = False

    # -- for the application (PEP 3333) ----------------------------------------------------

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, fewer only at the end of the body; all if no size is given."""
        return b"".join(self._pieces(size, self.rfile.read))

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line with its line feed, at most ``size`` bytes."""
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
        """Read the rest of the body that the application did not read; called by pywsgi."""
        self._proceed = None
        try:
            for _ in self._pieces(None, self.rfile.read):
                pass
        except BrokenBody:
            pass  # the handler checks ``broken`` and closes the connection

    # -- reading ---------------------------------------------------------------------------

    def _pieces(self, size: int | None, read: Callable[[int], bytes]) -> Iterator[bytes]:
        """Yield pieces of the body, up to ``size`` bytes or to the end of the body."""
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
        """Read and discard the trailers behind the last chunk (§7.1.2)."""
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
        """Limit the bytes that a client sends beside the body itself."""
        self._extra += extra
        if self._extra > _MOST_EXTRA:
            raise self._break(f"more than {_MOST_EXTRA} bytes of chunk extensions and trailers")

    def _ask(self, read: Callable[[int], bytes], most: int) -> bytes:
        """Wait for bytes of the connection; return b"" at the end of the connection."""
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
