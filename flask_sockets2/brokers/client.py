"""The connections for commands: scripts run on a server, or on the nodes of a cluster.

They are opened at their first use. Under gevent that has patched ``socket``, each native thread has
connections of its own, since a socket belongs to the hub of its thread.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

from ..exceptions import BrokerError

try:
    from redis import exceptions as errors
    from redis.backoff import NoBackoff
    from redis.cluster import RedisCluster
    from redis.connection import BlockingConnectionPool
    from redis.retry import Retry
except ImportError as exc:
    raise BrokerError(
        "a broker of redis://, rediss:// or unix:// needs the package redis, which is not "
        'installed; run pip install "flask-sockets2[redis]"'
    ) from exc

from .remedies import broker_error
from .scripts import Call

__all__ = ["SOCKET_TIMEOUT", "Client"]

SOCKET_TIMEOUT = 5.0  # seconds for one answer, and for connecting; a URL may set others
_CONNECTIONS = 32  # for commands at the same time; more callers wait, as long as for an answer

_OURS = frozenset({"protocol", "decode_responses", "encoding", "encoding_errors"})
"""Options of a URL that are not its user's choice: bytes are read as they come."""

_OPTION = re.compile(r"(?:unexpected keyword argument|Invalid value for) '(\w+)'")
"""The option that redis-py objects to."""


class _Servers(NamedTuple):
    """The connections of one process, or of one native thread of it."""

    pool: BlockingConnectionPool
    #: A RedisCluster, half of which has no types, for its knowledge of slots; None where there is
    #: one server.
    cluster: Any
    pools: dict[str, BlockingConnectionPool]  # of the cluster's nodes


class Client:
    """Runs scripts on a server, or on the nodes of a cluster.

    :param url: where it is, as redis-py reads it.
    :param timeout: seconds for one answer, where the URL sets none.
    :raises BrokerError: when the URL cannot be read.

    Nothing is tried twice, since it might be published twice then: a connection that was closed
    while it was idle is noticed before it is used.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._clustered: bool | None = None  # not known before the first use
        scheme = url.partition("://")[0]
        try:
            self._url = _without_ours(url)
            pool = self._new_pool()
            pool.connection_class(**pool.connection_kwargs)
        except (TypeError, ValueError) as exc:
            raise BrokerError(
                "expected a URL such as redis://user:password@host:6379/0, got one of the scheme "
                f"{scheme!r}: {_what_is_wrong(exc)}"
            ) from None
        options = pool.connection_kwargs
        self.db = int(options.get("db") or 0)
        self._password = str(options.get("password") or "")
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        place = options.get("path") or f"{host}:{port}/{self.db}"
        self.shown = f"{scheme}://{place}"
        """The URL without user and password."""
        self._local: Any = _store()

    def _options(self) -> dict[str, Any]:
        return {
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }

    def _new_pool(self) -> BlockingConnectionPool:
        return BlockingConnectionPool.from_url(
            self._url,
            **{"max_connections": _CONNECTIONS, "timeout": self._timeout, **self._options()},
        )

    def _servers(self) -> _Servers:
        servers: _Servers | None = getattr(self._local, "servers", None)
        if servers is None:
            pool = self._new_pool()
            if self._clustered is None:
                self._clustered = _is_cluster(pool)
            cluster = (
                RedisCluster.from_url(self._url, **self._options()) if self._clustered else None
            )
            servers = self._local.servers = _Servers(pool, cluster, {})
        return servers

    @property
    def clustered(self) -> bool:
        """Whether it is a cluster; asks the server the first time."""
        if self._clustered is None:
            self._translated(self._servers)
        return bool(self._clustered)

    @property
    def verb(self) -> str:
        """The command that publishes."""
        return "SPUBLISH" if self.clustered else "PUBLISH"

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts and return what each returned, in that order.

        On a cluster the keys of each are in one slot, and no two calls depend on their order.

        :raises BrokerError: when the server cannot be reached, or refuses one of them.
        """
        replies: list[Any] = self._translated(lambda: self._exchange(calls))
        for reply in replies:
            if isinstance(reply, errors.RedisError):
                raise self.error(reply) from reply
        return replies

    def replies(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts and return what each returned, a BrokerError where the server refuses it.

        :raises BrokerError: when the server cannot be reached, or is a replica.
        """
        return [
            self.error(reply) if isinstance(reply, errors.RedisError) else reply
            for reply in self._translated(lambda: self._exchange(calls))
        ]

    def _exchange(self, calls: Sequence[Call]) -> list[Any]:
        servers = self._servers()
        if servers.cluster is None:
            return _exchange(servers.pool, calls)
        return self._run_on_nodes(servers, calls)

    def _pool_of(self, servers: _Servers, name: str) -> BlockingConnectionPool:
        """Return the connections to a node."""
        pool = servers.pools.get(name)
        if pool is None:
            host, _, port = name.rpartition(":")
            pool = self._new_pool()
            pool.connection_kwargs.update(host=host, port=int(port))
            pool = servers.pools.setdefault(name, pool)
        return pool

    def _run_on_nodes(self, servers: _Servers, calls: Sequence[Call]) -> list[Any]:
        cluster = servers.cluster
        by_node: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            by_node.setdefault(cluster.get_node_from_key(call.keys[0]).name, []).append(i)
        replies: list[Any] = [None] * len(calls)
        for name, own in by_node.items():
            try:
                found = _exchange(self._pool_of(servers, name), [calls[i] for i in own])
            except (errors.ConnectionError, errors.TimeoutError):
                cluster.nodes_manager.initialize()  # its slots may be with another node by now
                raise
            for i, reply in zip(own, found, strict=True):
                if isinstance(reply, (errors.AskError, errors.TryAgainError, errors.ClusterError)):
                    reply = cluster.execute_command(*calls[i].in_full())
                replies[i] = reply
        return replies

    # -- for the listener ------------------------------------------------------------------

    def node_of(self, name: bytes) -> str:
        """Return the node of a cluster that has a pub/sub channel, '' where there is no cluster.

        :raises BrokerError: when the servers cannot be reached.
        """

        def ask() -> Any:
            cluster = self._servers().cluster
            return cluster.get_node_from_key(name).name if cluster is not None else ""

        return str(self._translated(ask))

    def refresh(self) -> None:
        """Ask the cluster again which node has what.

        :raises BrokerError: when the servers cannot be reached.
        """

        def ask() -> None:
            cluster = self._servers().cluster
            if cluster is not None:
                cluster.nodes_manager.initialize()

        self._translated(ask)

    def connection(self, node: str) -> Any:
        """Return a connection to a node, not yet connected, that no pool knows.

        :raises BrokerError: when the servers cannot be reached.
        """

        def make() -> Any:
            servers = self._servers()
            pool = self._pool_of(servers, node) if node else servers.pool
            return pool.connection_class(**pool.connection_kwargs)

        return self._translated(make)

    # -- errors ----------------------------------------------------------------------------

    def _translated(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (errors.RedisError, errors.RedisClusterException, OSError) as exc:
            if isinstance(exc, BrokerError):
                raise
            raise self.error(exc) from exc

    def error(self, exc: Exception) -> BrokerError:
        """Return an error of redis-py in our words."""
        return broker_error(exc, self.shown, self._password)

    # -- the end ---------------------------------------------------------------------------

    def forget(self) -> None:
        """Leave all connections to the parent, in a child of a fork."""
        self._local = _store()

    def close(self) -> None:
        """Close the connections; those of other native threads under gevent end with these."""
        servers: _Servers | None = getattr(self._local, "servers", None)
        self._local = _store()
        if servers is not None:
            for pool in (servers.pool, *servers.pools.values()):
                pool.disconnect()
            if servers.cluster is not None:
                servers.cluster.close()


def _what_is_wrong(exc: Exception) -> str:
    """Return what is wrong with a URL, without any part of its password, and the remedy."""
    option = _OPTION.search(str(exc))
    if option is not None:
        return f"its option {option[1]!r} is unknown or has a wrong value; see those of redis-py"
    # What it says may hold a part of the password, where that holds a slash.
    return "it cannot be read; write special characters of the password as %2F"


def _without_ours(url: str) -> str:
    """Return a URL without the options that are not its user's choice.

    :raises BrokerError: when it names a database by anything but its number, which redis-py would
        take for 0.
    """
    address, _, query = url.partition("?")
    parts = urlsplit(address)
    if parts.scheme != "unix" and not re.fullmatch("(/[0-9]*)?", parts.path):
        raise BrokerError(
            "expected a URL such as redis://user:password@host:6379/0, got one without the number "
            "of a database, or nothing, after the host; write a slash in the password as %2F"
        )
    kept = [(name, value) for name, value in parse_qsl(query) if name not in _OURS]
    return f"{address}?{urlencode(kept)}"


def _store() -> Any:
    """Return where a process keeps its connections, under a patched gevent each native thread."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return SimpleNamespace()
    return monkey.get_original("_thread", "_local")()


def _is_cluster(pool: BlockingConnectionPool) -> bool:
    reply = _converse(pool, [("INFO", "cluster")])[0]
    if isinstance(reply, errors.NoPermissionError):
        return False
    if isinstance(reply, errors.RedisError):
        raise reply
    return b"cluster_enabled:1" in reply


def _exchange(pool: Any, calls: Sequence[Call]) -> list[Any]:
    """Run scripts; an error of the server is in the place of what it answers."""
    replies = _converse(pool, [call.by_name() for call in calls])
    unknown = [i for i, reply in enumerate(replies) if isinstance(reply, errors.NoScriptError)]
    if unknown:
        # The text runs in any case, and the server knows the script afterwards.
        again = _converse(pool, [calls[i].in_full() for i in unknown])
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    return replies


def _converse(pool: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Send commands in one piece and read the answers."""
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except errors.ReadOnlyError:
                raise  # it is a replica by now, and its address may lead to the new primary
            except errors.ResponseError as exc:
                replies.append(exc)
        return replies
    except BaseException:
        connection.disconnect()  # answers that nobody reads are still to come
        raise
    finally:
        pool.release(connection)
