"""The head of a request, read more strictly than pywsgi would (RFC 9112).

Two servers in a row must not read one head in two ways, and what a client sent must not steer a
terminal that shows the log.
"""

from __future__ import annotations

import re
from sys import intern
from typing import Any

__all__ = ["CONTROL", "CONTROL_IN_LINE", "NAME", "Headers", "printable"]

_MAX_HEAD = 65536  # bytes of all header lines together

NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token, RFC 9110 §5.6.2
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
CONTROL_IN_LINE = re.compile("[\x00-\x1f\x7f]")


class Headers:
    """The header fields of a request, read strictly; what pywsgi needs of ``email.Message``.

    Refused are lines that are no field, a space before the colon, folded lines and control
    characters (RFC 9112 §5.1, §5.2), and whatever leaves room for doubt about the length of the
    body (§6.1, §6.3).
    """

    status = ""  # of Python 2's parser: it has no complaint

    def __init__(self, rfile: Any) -> None:
        self.fields: list[tuple[str, str]] = []
        left = _MAX_HEAD
        while (line := rfile.readline(left)) not in (b"\r\n", b"\n"):
            left -= len(line)
            name, colon, value = line[:-1].removesuffix(b"\r").partition(b":")
            if not (colon and line.endswith(b"\n") and NAME.fullmatch(name)):
                raise ValueError(_head_error(line, left))
            if CONTROL.search(value):
                raise ValueError("the value of a header field holds a control character")
            # Names are the same in every request: interned, a connection keeps none of its own.
            field = intern(name.decode("ascii"))
            self.fields.append((field, value.strip(b" \t").decode("latin-1")))
        self._check_framing()

    def _check_framing(self) -> None:
        """See that everybody agrees on where the body ends (RFC 9112 §6.3)."""
        lengths, encodings = self.get_all("content-length"), self.get_all("transfer-encoding")
        if len(lengths) + len(encodings) > 1:
            raise ValueError("expected one Content-Length or Transfer-Encoding header field")
        if lengths and not (lengths[0].isascii() and lengths[0].isdigit()):
            raise ValueError("Content-Length is no number")
        if encodings and encodings[0].lower() != "chunked":
            raise ValueError("the only Transfer-Encoding that is understood is chunked")

    def get_all(self, name: str) -> list[str]:
        """Return the values of a field; :param name: in lower case."""
        return [value for field, value in self.fields if field.lower() == name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the first value of a field."""
        name = name.lower()
        return next((value for field, value in self.fields if field.lower() == name), default)

    getheader = get

    @property
    def typeheader(self) -> str | None:
        """The Content-Type."""
        content_type: str | None = self.get("content-type")
        return content_type

    def items(self) -> list[tuple[str, str]]:
        """Return names and values, for the access log."""
        return self.fields

    def __delitem__(self, name: str) -> None:
        self.fields = [field for field in self.fields if field[0].lower() != name]


def _head_error(line: bytes, left: int) -> str:
    if not left:
        return f"the head of the request is longer than {_MAX_HEAD} bytes"
    if not line:
        return "the head of the request ends in the middle"
    if line[:1] in b" \t":
        return "a header line begins with a space: folded lines are not allowed (RFC 9112 §5.2)"
    return "a header line is not 'name: value' (RFC 9112 §5)"


def printable(text: str) -> str:
    """Return what a client sent as a log may have it: in one line, and nothing for a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
