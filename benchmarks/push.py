"""The measurements of broadcasts: paced, back to back, memory, many channels, replay."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

from .exchange import Exchange
from .listeners import Broadcast, Listeners, ask
from .load import LoadError, Window, check_echo
from .measure import Cores, Meter, Sample
from .pushers import Pusher
from .servers import Server

SIZE = 300  # bytes of a message
OPEN_TIMEOUT = 90.0  # seconds, for all listeners
TIMEOUT = 30.0  # seconds until everything must have arrived
PROBE = 10  # messages that tell how many fit into a window
MOST = 3000  # messages of a window: 1 MB for each listener, should it be the slower
WARM = 200  # listeners that come and go before the memory is read
SETTLES = 1.0  # seconds between the last listener and the reading
CONNECTIONS = 10  # that all channels are spread over
CHANNELS_FEW = 10


def paced(server: Server, cores: Cores, clients: int, messages: int, interval: float) -> Sample:
    """Measure messages that come at intervals, each for all listeners.

    :returns: with ``p50_ms`` of the time from a message's first delivery to its last.
    :raises LoadError: one of them did not arrive everywhere.
    :raises ServerError: the server died.
    """
    with _listening(server, clients) as listeners:
        listeners.broadcast(server.port, Broadcast(2, interval), TIMEOUT)
        meter = Meter(server, cores)
        window = listeners.broadcast(server.port, Broadcast(messages, interval), TIMEOUT)
        return sample_of(meter, window, clients)


def flood(
    server: Server, cores: Cores, clients: int, seconds: float, turns: Sequence[int]
) -> dict[int, Sample]:
    """Measure messages back to back.

    :param seconds: of each window, roughly.
    :param turns: how many of them come in a turn of the hub; a window for each.
    :returns: a sample for each of those.
    """
    samples = {}
    with _listening(server, clients) as listeners:
        for turn in turns:
            probe = listeners.broadcast(server.port, Broadcast(PROBE * turn, turn=turn), TIMEOUT)
            count = int(probe.messages / probe.seconds * seconds / clients)
            count = max(min(count, MOST) // turn, 2) * turn
            meter = Meter(server, cores)
            window = listeners.broadcast(server.port, Broadcast(count, turn=turn), TIMEOUT)
            samples[turn] = sample_of(meter, window, clients)
    return samples


def memory(server: Server, clients: int, *, echoes: bool) -> Sample:
    """Measure the memory that a listener takes, and see that all of them still hear.

    :param server: newly started.
    :param echoes: it has a route that sends back what comes, which must still do so.
    """
    with _listening(server, min(WARM, clients)):
        pass
    server.settle()
    before = server.memory()
    began = time.perf_counter()
    with _open(server, clients) as listeners:
        seconds = time.perf_counter() - began
        time.sleep(SETTLES)
        kib = (server.memory() - before) / clients / 1024
        listeners.learn([server.port], TIMEOUT)
        if echoes:
            check_echo(server.port, Exchange.of(b"hello", binary=False, parsed=True), TIMEOUT)
    return {"kib": kib, "clients": clients, "open_seconds": seconds}


def channels(server: Server, cores: Cores, number: int, messages: int) -> Sample:
    """Measure publishing to many channels, each with one subscriber, one message a turn.

    Few connections share the channels, so that the sockets are the same however many there are.
    """
    each = number // CONNECTIONS
    with Listeners(SIZE) as listeners:
        for connection in range(CONNECTIONS):
            target = f"/listen?first={connection * each}&channels={each}"
            listeners.open(server.port, 1, OPEN_TIMEOUT, target)
        listeners.expect()
        what = Broadcast(messages, channels=number)
        listeners.broadcast(server.port, what, TIMEOUT, expected=messages)
        meter = Meter(server, cores)
        window = listeners.broadcast(server.port, what, TIMEOUT, expected=messages)
        return {**sample_of(meter, window, CONNECTIONS), "channels": number}


def replay(server: Server, cores: Cores, clients: int, messages: int) -> Sample:
    """Measure listeners that all come back at once, so many messages behind, until all are level.

    :returns: with ``seconds`` until then; and ``open_seconds`` of as many that lack nothing.
    """
    with _listening(server, clients):
        pass
    server.settle()
    before = ask(server.port, "/position")
    ask(server.port, Broadcast(messages).target(SIZE), TIMEOUT)
    opening = time.perf_counter()
    with _open(server, clients):
        opening = time.perf_counter() - opening
    server.settle()
    with Listeners(SIZE) as listeners:
        listeners.expect()
        gc.collect()
        meter = Meter(server, cores)
        cpu, began = time.process_time(), time.perf_counter()
        listeners.open(server.port, clients, OPEN_TIMEOUT, f"/listen?since={before}")
        missing = clients * messages - listeners.arrived()
        listeners.collect(missing, time.perf_counter() + TIMEOUT)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        window = Window(clients * messages, seconds, cpu, [])
        sample = sample_of(meter, window, clients)
    return {**sample, "seconds": seconds, "open_seconds": opening, "behind": messages}


def floor_of_replay(server: Server, cores: Cores, clients: int, messages: int) -> Sample:
    """Measure as many messages as :func:`replay` brings, by one send each, to open connections."""
    with _listening(server, clients) as listeners:
        meter = Meter(server, cores)
        window = listeners.broadcast(server.port, Broadcast(messages), TIMEOUT)
        sample = sample_of(meter, window, clients)
    return {**sample, "seconds": window.seconds, "behind": messages}


def _listening(server: Server, clients: int) -> Listeners:
    """Return open listeners that have got one message."""
    listeners = _open(server, clients)
    try:
        listeners.learn([server.port], TIMEOUT)
    except BaseException:
        listeners.close()
        raise
    return listeners


def _open(server: Server, clients: int) -> Listeners:
    pusher = server.peer
    assert isinstance(pusher, Pusher)
    listeners = Listeners(SIZE, greeting=pusher.greeting)
    try:
        listeners.open(server.port, clients, OPEN_TIMEOUT, pusher.target)
    except BaseException:
        listeners.close()
        raise
    return listeners


def sample_of(meter: Meter, window: Window, clients: int) -> Sample:
    """Return the figures of a window that has just ended."""
    if not window.messages:
        raise LoadError("nothing was delivered")
    sample = meter.sample(window)
    if not window.latencies:
        del sample["p50_ms"], sample["p99_ms"]
    return {**sample, "clients": clients, "backlog": window.backlog}
