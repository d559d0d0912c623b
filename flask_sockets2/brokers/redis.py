"""The broker of many processes and hosts: history in Redis Streams, delivery by pub/sub.

It speaks to Redis 6.2 and newer, Valkey, their replicas that were promoted, and their clusters
(Redis 7.0 and newer, Valkey). Needs ``pip install "flask-sockets2[redis]"``.

What is published is added to the log and delivered by one script, so that history and delivery
cannot disagree. Each process has one connection for pub/sub (on a cluster one for each node), and
some for commands, opened at their first use.

Under gevent that has patched ``socket``, each native thread has connections of its own, since a
socket belongs to the hub of its thread.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
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

from .base import (
    Broker,
    BrokerOptions,
    Draft,
    History,
    Message,
    Position,
    Receiver,
    native_lock,
    new_epoch,
)
from .leases import Leases, LeaseTimes
from .listener import Listener
from .reader import ListenerTimes
from .scripts import APPEND, HISTORY, HOLD, POSITION, Call, Names, body_of, parse

__all__ = ["Client", "RedisBroker"]

_SOCKET_TIMEOUT = 5.0  # seconds for one answer, and for connecting; a URL may set others
_CONNECTIONS = 32  # for commands at the same time; more callers wait, as long as for an answer
_ROUND_MESSAGES = (
    64  # published by one run of the script, during which the server does nothing else
)
_ROUND_BYTES = 2**20
_PAGE = 100  # messages of a history in one answer
_BATCH = 100  # histories asked for in one exchange
_EXCHANGE_BYTES = 4 * 2**20  # of messages that are read at once; a longer message comes alone
_DAY = 86_400_000  # milliseconds

_OURS = frozenset({"protocol", "decode_responses", "encoding", "encoding_errors"})
"""Options of a URL that are not its user's choice: bytes are read as they come."""

_OPTION = re.compile(r"(?:unexpected keyword argument|Invalid value for) '(\w+)'")
"""The option that redis-py objects to."""

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


class RedisBroker(Broker):
    """Channels of all processes that use one server (``redis://``, ``rediss://``, ``unix://``).

    :param client_timeout: seconds for one answer of the server, where the URL sets none.
    :param listener_times: of the connection that listens.
    :param lease_times: of what a process says about itself.
    """

    shared = True
    waits = True

    def __init__(
        self,
        url: str,
        options: BrokerOptions,
        receiver: Receiver | None = None,
        *,
        client_timeout: float = _SOCKET_TIMEOUT,
        listener_times: ListenerTimes | None = None,
        lease_times: LeaseTimes | None = None,
    ) -> None:
        super().__init__(url, options, receiver)
        self._client = Client(url, client_timeout)
        self._names = Names(options.prefix, self._client.db)
        self._listener_times = listener_times or ListenerTimes()
        self._lease_times = lease_times or LeaseTimes()
        self._begin()
        _forked_with(self)

    def _begin(self) -> None:
        """Make what belongs to one process."""
        self._listener = Listener(
            self._client,
            self._names,
            self.receiver,
            self.position,
            self._histories,
            self._listener_times,
        )
        self._leases = Leases(
            self._client, self._names, self.options.presence_grace, self._lease_times
        )

    def _after_fork(self) -> None:
        """Let go, in a child, of what is its parent's: its threads, locks and connections."""
        self._client.forget()
        self._listener.forget()
        self._leases.forget()
        self._begin()

    # -- messages --------------------------------------------------------------------------

    def publish(self, drafts: Sequence[Draft]) -> list[Position]:
        if len(drafts) == 1:
            return self._append(drafts)
        positions: list[Position] = []
        for together in _rounds(drafts):
            positions += self._append(together)
        return positions

    def _append(self, drafts: Sequence[Draft]) -> list[Position]:
        """Publish at once, each channel's messages together or not at all.

        A script that the server has forgotten, a slot that has moved or a memory that is full
        concerns one call then, and no channel's messages are in two: they keep their order.
        """
        if len(drafts) == 1 or not self._client.clustered:
            return _positions(self._client.run([self._append_call(drafts)])[0])
        by_channel: dict[str, list[int]] = {}
        for i, draft in enumerate(drafts):
            by_channel.setdefault(draft.channel, []).append(i)
        calls = [self._append_call([drafts[i] for i in own]) for own in by_channel.values()]
        found: dict[int, Position] = {}
        for own, reply in zip(by_channel.values(), self._client.run(calls), strict=True):
            found.update(zip(own, _positions(reply), strict=True))
        return [found[i] for i in range(len(drafts))]

    def _append_call(self, drafts: Sequence[Draft]) -> Call:
        keys: list[str] = []
        channels: dict[str, tuple[int, bytes]] = {}
        # What is published to a reserved channel comes alone.
        kept = _kept(self.options.of(drafts[0].channel))
        args: list[Any] = [self._client.verb, new_epoch(), *kept]
        for channel, kind, data, key, event, transient in drafts:
            if channel not in channels:
                channels[channel] = (len(channels) + 1, self._names.pubsub(channel))
                keys += self._names.log(channel)
            args += channels[channel]
            args += (int(transient), body_of(kind, data, key, event, transient))
        return Call(APPEND, keys, args)

    def subscribe(self, channel: str) -> Position:
        return self._listener.subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        self._listener.unsubscribe(channel)

    def away(self) -> bool | None:
        return self._listener.away()

    def position(self, channel: str) -> Position:
        [position] = self.positions([channel])
        return position

    def positions(self, channels: Sequence[str]) -> list[Position]:
        calls = [Call(POSITION, self._names.log(channel), [new_epoch()]) for channel in channels]
        replies = self._client.run(calls) if calls else ()
        return [Position(epoch.decode(), int(offset)) for epoch, offset in replies]

    def history(self, channel: str, since: Position | None) -> History:
        [found] = self._histories([(channel, since)])
        if isinstance(found, BrokerError):
            raise found
        return found

    def _histories(
        self, wanted: Sequence[tuple[str, Position | None]]
    ) -> Iterator[History | BrokerError]:
        """Yield the histories of several channels, an error for one that cannot be read.

        One is let go before the next but few is read: together they can be more than fits.
        """
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            calls = [self._page(*each, together=len(batch)) for each in batch]
            for (channel, since), reply in zip(batch, self._client.replies(calls), strict=True):
                if isinstance(reply, BrokerError):
                    yield reply
                else:
                    yield self._read(channel, since, reply)

    def _page(
        self, channel: str, since: Position | None, *, newest: int | str = "", together: int = 1
    ) -> Call:
        """Return the call for a page of a history.

        :param newest: offset that it begins with, '' for the newest of all.
        :param together: pages in one exchange; one that is alone holds a message, however long.
        """
        args = [new_epoch(), *(since or ("", "")), self.options.history_size, newest]
        args += [_PAGE, _EXCHANGE_BYTES // together, int(together == 1)]
        return Call(HISTORY, self._names.log(channel), args)

    def _read(self, channel: str, since: Position | None, reply: Any) -> History:
        """Read a history, whose first page has come, from its newest message back.

        What is trimmed between two pages, or was written by another program, ends it; so does a
        message that is too much for ``history_bytes``.
        """
        position = Position(reply[0].decode(), int(reply[1]))
        offset = position.offset
        messages: list[Message] = []
        size, most = 0, self.options.of(channel).history_bytes
        try:
            for body in self._bodies(channel, since, reply):
                message = parse(channel, body, Position(position.epoch, offset))
                size += len(message.data)
                if messages and size > most:
                    break
                messages.append(message)
                offset -= 1
        except ValueError:
            pass  # another program's
        if since is not None and since != (position.epoch, offset):
            return History((), position, complete=False)
        messages.reverse()
        return History(messages, position)

    def _bodies(self, channel: str, since: Position | None, reply: Any) -> Iterator[bytes]:
        """Yield the messages of a log, the newest first, that follow a position without a gap."""
        epoch, newest, more, page = reply
        offset = int(newest)
        if since is None:
            since = Position(epoch.decode(), max(offset - self.options.history_size, 0))
        while True:
            yield from page
            if not more:
                return
            offset -= len(page)
            call = self._page(channel, since, newest=offset)
            _, _, more, page = self._client.run([call])[0]

    # -- who is there ----------------------------------------------------------------------

    def count(self, channel: str, subscribers: int) -> None:
        self._leases.count(channel, subscribers)

    def subscribers(self, channel: str) -> int:
        return self._leases.subscribers(channel)

    def join(self, channel: str, identity: str) -> None:
        self._leases.join(channel, identity)

    def leave(self, channel: str, identity: str) -> None:
        self._leases.leave(channel, identity)

    def present(self, channel: str) -> list[str]:
        return self._leases.present(channel)

    def hold(self, name: str, holder: str, seconds: float) -> bool:
        args = [holder, max(int(seconds * 1000), 0)]
        return bool(self._client.run([Call(HOLD, [self._names.key(name, "holder")], args)])[0])

    def close(self) -> None:
        self._leases.close()
        self._listener.close()
        self._client.close()


def _kept(options: BrokerOptions) -> tuple[int, int, int]:
    """Return how many messages of a log are kept, and how many milliseconds it and its meta."""
    log_ttl = max(int(options.history_ttl * 1000), 1)
    return options.history_size, log_ttl, max(_DAY, 10 * log_ttl)


def _rounds(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    """Cut drafts into what is published at once."""
    together: list[Draft] = []
    size = 0
    for draft in drafts:
        if together and (len(together) == _ROUND_MESSAGES or size > _ROUND_BYTES):
            yield together
            together, size = [], 0
        together.append(draft)
        size += len(draft.data)
    if together:
        yield together


def _positions(reply: bytes) -> list[Position]:
    return [Position(text[:16], int(text[17:])) for text in reply.decode().split()]


# -- the connections for commands --------------------------------------------------------------


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
        said = _BEHIND.split(_BEFORE.sub("", str(exc)), maxsplit=1)[0].strip().rstrip(".")
        if self._password:
            said = said.replace(self._password, "***")
        if isinstance(exc, errors.TimeoutError):
            return BrokerError(
                f"{self.shown} did not answer in time ({said}); see whether it is overloaded or "
                "the network is interrupted"
            )
        remedy = _REMEDIES.get(_WORDS.get(type(exc)) or said.partition(" ")[0])
        if remedy is None and not isinstance(exc, errors.ResponseError):
            return BrokerError(
                f"cannot reach {self.shown}: {said}; start the server or correct the URL"
            )
        return BrokerError(f"{self.shown} refused: {said}; {remedy or 'see its log'}")

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


# -- fork --------------------------------------------------------------------------------------

_brokers: weakref.WeakSet[RedisBroker] = weakref.WeakSet()
_lock = native_lock()  # guards both
_registered: list[bool] = []


def _forked_with(broker: RedisBroker) -> None:
    """Have a broker renewed in the children of this process."""
    with _lock:
        _brokers.add(broker)
        if not _registered and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_renew)
            _registered.append(True)


def _renew() -> None:
    global _lock
    _lock = native_lock()  # another thread of the parent may have held it
    for broker in list(_brokers):
        broker._after_fork()
