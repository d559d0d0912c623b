"""Settings of Firehose."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import SWITCH, Kind, or_none, setting, text

__all__ = ["FirehoseSettings"]

_HINTS = Kind("bool", "'auto', True or False", lambda value: value == "auto" or SWITCH.fits(value))
_HEADER = text(
    "text", "the name of a header, such as 'X-Early-Hints'", r"[!#$%&'*+.^`|~0-9A-Za-z_-]+"
)


@dataclass(frozen=True, slots=True)
class FirehoseSettings:
    """Settings of Firehose.

    :param early_hints: When a 103 is sent: ``True`` if the server can, ``False`` never, ``auto`` by
        the rules of ``docs/firehose.rst``.
    :param hop_header: The header by which a proxy says that it passes a 103 on.
    :param learn: Whether to hint at what the last response of the page has pushed.
    """

    early_hints: str | bool = setting("FIREHOSE_EARLY_HINTS", "auto", _HINTS)
    hop_header: str | None = setting("FIREHOSE_HOP_HEADER", None, or_none(_HEADER))
    learn: bool = setting("FIREHOSE_LEARN", True, SWITCH)
