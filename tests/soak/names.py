"""What the channels of the soak are called."""

from __future__ import annotations

__all__ = ["EVENTS", "PLAIN", "ROOMS", "TURBO_ALL", "USERS", "every_channel", "room", "user"]

PLAIN = "soak:"
"""Of listeners."""
EVENTS = "sse:"
"""Of event streams."""
TURBO_ALL = "turbo:all"
USERS, ROOMS = 6, 4  # of pages


def user(number: int) -> str:
    """Return the channel of a user's pages."""
    return f"turbo:user:u{number}"


def room(number: int) -> str:
    """Return the channel of a stream that pages name."""
    return f"turbo:stream:room:{number}"


def every_channel(plain: int, *, everything: bool) -> list[str]:
    """Return the names of all channels that something is published to.

    :param plain: how many listeners take theirs from.
    :param everything: those of other features, too.
    """
    names = [f"{PLAIN}{number}" for number in range(plain)]
    if everything:
        names += [f"{EVENTS}{number}" for number in range(6)]
        names += [TURBO_ALL, *map(user, range(USERS)), *map(room, range(ROOMS))]
    return names
