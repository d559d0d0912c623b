"""Remedies: errors of redis-py in our words, with what helps, and without a password."""

from __future__ import annotations

import re

from redis import exceptions as errors

from ..exceptions import BrokerError

__all__ = ["broker_error"]

_BEFORE = re.compile(r"(Error running script \(call to \w+\): )?@user_script:\s*\d+: -?")
_BEHIND = re.compile(r", with args| script: [0-9a-f]{40}")
"""What older and newer servers put around an error: where in a script, what was sent."""

_WORDS: dict[type[Exception], str] = {
    errors.OutOfMemoryError: "OOM",
    errors.ReadOnlyError: "READONLY",
    errors.NoPermissionError: "NOPERM",
    errors.AuthenticationError: "WRONGPASS",
    errors.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
}
"""The first word of an answer, where redis-py has made a class of it."""

_REMEDIES = {
    "OOM": "raise its maxmemory, or keep less history",
    "READONLY": "it is a replica; use the URL of the primary",
    "NOPERM": "grant its user the commands, keys and channels that are used",
    "ACL": "grant its user the commands that the scripts use",
    "WRONGPASS": "correct user and password in the URL",
    "NOAUTH": "put user and password in the URL",
    "WRONGTYPE": "another program uses its names; choose another prefix",
}
"""What helps, by the first word of an answer."""


def broker_error(exc: Exception, shown: str, password: str) -> BrokerError:
    """Return what is to be raised in place of an error.

    :param shown: where the server is.
    :param password: that an error may hold, empty for none.
    """
    said = _BEHIND.split(_BEFORE.sub("", str(exc)), maxsplit=1)[0].strip().rstrip(".")
    if password:
        said = said.replace(password, "***")
    if isinstance(exc, errors.TimeoutError):
        return BrokerError(
            f"{shown} did not answer in time ({said}); see whether it is overloaded or "
            "the network is interrupted"
        )
    remedy = _REMEDIES.get(_WORDS.get(type(exc)) or said.partition(" ")[0])
    if remedy is None and not isinstance(exc, errors.ResponseError):
        return BrokerError(f"cannot reach {shown}: {said}; start the server or correct the URL")
    return BrokerError(f"{shown} refused: {said}; {remedy or 'see its log'}")
