"""Checks of close codes and reasons (RFC 6455 §5.5 and §7.4)."""

from __future__ import annotations

__all__ = ["check_close", "may_be_sent"]

_MAX_REASON = 123  # bytes: a control frame has 125, and the code takes two


def may_be_sent(code: object) -> bool:
    """Tell whether a close frame may carry a code: RFC 6455 §7.4.1 and §7.4.2, and codes that IANA
    has registered since."""
    if not isinstance(code, int):
        return False
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


def check_close(code: object, reason: str, usual: int = 1000) -> None:
    """Check that a close frame can carry a code and a reason.

    :param usual: the code that an error recommends.
    :raises ValueError: if a close frame cannot carry them.
    """
    if not may_be_sent(code):
        raise ValueError(
            f"{code!r} cannot be sent as a close code; use {usual}, or 4000 to 4999 for your own"
        )
    if len(reason.encode()) > _MAX_REASON:
        raise ValueError(f"a close reason is at most {_MAX_REASON} bytes long; shorten it")
