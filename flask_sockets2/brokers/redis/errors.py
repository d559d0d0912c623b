"""Errors of redis-py as BrokerError: with a remedy, and without the password."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from redis import exceptions as errors

from ...exceptions import BrokerError

__all__ = ["GARBLED", "broker_error"]

GARBLED = (ValueError, TypeError, LookupError, AttributeError)
"""Exceptions that are raised if an answer does not come from a Redis."""

_BEFORE = re.compile(r"(Error running script \(call to \w+\): )?@user_script:\s*\d+: -?")
_BEHIND = re.compile(r", with args| script: (?:on @user_script:|[0-9a-f]{40})")
"""Text that older and newer servers add to an error: line of the script, and arguments."""

_WORDS: dict[type[Exception], str] = {
    errors.OutOfMemoryError: "OOM",
    errors.ReadOnlyError: "READONLY",
    errors.NoPermissionError: "NOPERM",
    errors.AuthenticationError: "WRONGPASS",
    errors.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    errors.BusyLoadingError: "LOADING",
    errors.ClusterDownError: "CLUSTERDOWN",
    errors.MasterDownError: "MASTERDOWN",
    errors.MovedError: "MOVED",
}
"""First word of an answer, if redis-py has replaced the word by a class."""

_GRANT = (
    "grant its user the keys ~{prefix}:*, the pub/sub channels &{prefix}:* and the commands that "
    'are listed under "Permissions" in docs/several-workers.rst'
)
_NO_PASSWORD = "it has no password; leave the password out of the URL, or set its requirepass"

_REMEDIES = {
    "OOM": "raise its maxmemory, or keep less history",
    "READONLY": "it is a replica; use the URL of the primary",
    "AUTH <password> called": _NO_PASSWORD,
    "Client sent AUTH": _NO_PASSWORD,
    "Authentication required": "put user and password in the URL",
    "DB index": (
        "it has no database of that number; correct the end of the URL, or raise its databases"
    ),
    "SELECT is not allowed": "a cluster has database 0 alone; leave the number out of the URL",
    "unknown command": "it lacks a command that Redis 6.2 and Valkey have; use one of these",
    "MOVED": "it is a node of a cluster, which INFO says; grant its user that command",
    "NOPERM": _GRANT,
    "ACL": _GRANT,
    "WRONGPASS": "correct user and password in the URL",
    "NOAUTH": "put user and password in the URL",
    "WRONGTYPE": "another program uses its names; choose another prefix",
    "max": "raise its maxclients, or close connections of others (CLIENT LIST shows them)",
    "LOADING": "wait until it has loaded its data",
    "CLUSTERDOWN": "wait until its nodes serve all slots, or see CLUSTER INFO",
    "MASTERDOWN": "wait until its primary is back, or use the URL of the primary",
    "MISCONF": "make room on its disk, so that it can save",
    "DENIED": "give it a password (requirepass) and put that in the URL, as it says",
}
"""Remedies, by the first words of an answer."""

_CAUSES: tuple[tuple[type[Exception], str, str], ...] = (
    (socket.gaierror, "", "correct the name of the host in the URL, or see whether its DNS works"),
    (
        ssl.SSLCertVerificationError,
        "",
        "name the authority of its certificate by ?ssl_ca_certs=/path in the URL, and the host "
        "that the certificate is for",
    ),
    (FileNotFoundError, "unix:", "start the server, or correct the path of the socket in the URL"),
    (FileNotFoundError, "", "correct the path of the file in an option of the URL"),
    (
        errors.RedisClusterException,
        "",
        "start its nodes, or correct the URL, or grant its user CLUSTER SLOTS and COMMAND",
    ),
    (PermissionError, "unix:", "let this process read and write the socket (unixsocketperm)"),
)
"""Remedies, by the cause of a failed connection and the beginning of the URL."""


def broker_error(exc: Exception, shown: str, password: str, prefix: str = "") -> BrokerError:
    """Return a BrokerError to raise in place of an error.

    :param shown: address of the server, for the message.
    :param password: password to hide in the message, empty for none.
    :param prefix: prefix of all names on the server.
    """
    said = _BEHIND.split(_BEFORE.sub("", str(exc)), maxsplit=1)[0].strip().rstrip(".")
    if password:
        said = said.replace(password, "***")
    if isinstance(exc, errors.TimeoutError):
        return BrokerError(
            f"{shown} did not answer in time ({said}); see whether it is overloaded or "
            "the network is interrupted"
        )
    garbled = isinstance(exc, (*GARBLED, errors.InvalidResponse))
    if garbled or said == "Connection not ready":
        return BrokerError(
            f"what listens at {shown} does not answer as Redis does; correct the URL, for it may "
            "lead to another server"
        )
    remedy = next((_REMEDIES[words] for words in _REMEDIES if said.startswith(words)), None)
    remedy = remedy or _REMEDIES.get(_WORDS.get(type(exc), ""))
    if remedy is None and not isinstance(exc, errors.ResponseError):
        return BrokerError(f"cannot reach {shown}: {said}; {_remedy_of_cause(exc, shown)}")
    remedy = (remedy or "see its log").replace("{prefix}", prefix)
    return BrokerError(f"{shown} refused: {said}; {remedy}")


def _remedy_of_cause(exc: Exception, shown: str) -> str:
    for cause in _causes(exc):
        for kind, scheme, remedy in _CAUSES:
            if isinstance(cause, kind) and shown.startswith(scheme):
                return remedy
    return "start the server or correct the URL"


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__
