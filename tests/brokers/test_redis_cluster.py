"""What only a cluster does: several nodes, slots that move; the rest is in ``test_contract.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_sockets2 import BrokerError
from flask_sockets2.brokers.base import TEXT, Draft, Position
from flask_sockets2.brokers.redis.broker import RedisBroker
from flask_sockets2.brokers.redis.reader import ListenerTimes
from tests.processes import wait_until

from .conftest import NO_SERVER, Missed, Recorder, Resumed
from .servers import RedisCluster, RedisServer, server_binary
from .test_redis import text

MakeRedis = Callable[..., RedisBroker]

TIMES: dict[str, Any] = {
    "listener_times": ListenerTimes(answer=1.0, ping=0.3, shortest_wait=0.01, longest_wait=0.1),
    "client_timeout": 1.0,
}


pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """A cluster that belongs to one test."""
    if server_binary() is None:
        pytest.skip(NO_SERVER)
    cluster = RedisCluster()
    yield cluster
    cluster.remove()


def slot_of(broker: RedisBroker, channel: str, node: RedisServer) -> int:
    with node.client() as client:
        return int(client.execute_command("CLUSTER", "KEYSLOT", broker._names.pubsub(channel)))


def channel_in(broker: RedisBroker, cluster: RedisCluster, node: int) -> str:
    """A channel whose slot is with a node."""
    start, end = cluster.SLOTS[node]
    for i in range(1000):
        if start <= slot_of(broker, f"channel {i}", cluster.nodes[0]) <= end:
            return f"channel {i}"
    raise AssertionError("no channel was found")


def move_slot(cluster: RedisCluster, slot: int, source: int, target: int) -> None:
    """Move a slot with its keys, as ``valkey-cli --cluster reshard`` does."""
    one, other = cluster.nodes[source], cluster.nodes[target]
    with one.client() as client, other.client() as second:
        source_id = client.execute_command("CLUSTER", "MYID").decode()
        target_id = second.execute_command("CLUSTER", "MYID").decode()
        second.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            client.execute_command(
                *("MIGRATE", "127.0.0.1", other.port, "", 0, 5000, "KEYS", *keys)
            )
        for node in (other, one, *cluster.nodes):
            with node.client() as each:
                each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)


def listeners(cluster: RedisCluster) -> list[int]:
    found = []
    for node in cluster.nodes:
        with node.client() as client:
            found.append(len(client.client_list(_type="pubsub")))
    return found


def test_each_node_with_channels_has_one_connection_that_listens(
    cluster: RedisCluster, make_redis: MakeRedis, recorder: Recorder
) -> None:
    broker = make_redis(recorder, url=cluster.url)
    channels = [channel_in(broker, cluster, node) for node in range(3)]
    broker.subscribe(channels[1])
    assert listeners(cluster) == [0, 1, 0]
    for channel in channels + [f"channel {i}" for i in range(50)]:
        broker.subscribe(channel)
    assert listeners(cluster) == [1, 1, 1]
    broker.publish([Draft(channel, TEXT, channel.encode()) for channel in channels])
    recorder.wait(lambda: len(recorder.messages) == 3, "one message of each node")
    assert sorted(recorder.data) == sorted(channel.encode() for channel in channels)


def test_a_message_goes_to_no_other_node(
    cluster: RedisCluster, make_redis: MakeRedis, recorder: Recorder
) -> None:
    broker = make_redis(recorder, url=cluster.url)
    channel = channel_in(broker, cluster, 1)
    broker.subscribe(channel)
    broker.publish(text(channel, "1"))
    recorder.wait_for(b"1")
    with cluster.nodes[1].client() as client:
        assert client.pubsub_shardchannels() == [broker._names.pubsub(channel)]
        assert client.pubsub_channels() == []


def test_a_slot_that_moves_takes_its_subscribers_along(
    cluster: RedisCluster, make_redis: MakeRedis, recorder: Recorder
) -> None:
    broker = make_redis(recorder, url=cluster.url, times=TIMES)
    other = make_redis(url=cluster.url)
    moves, stays = (channel_in(broker, cluster, node) for node in (0, 1))
    broker.subscribe(moves)
    broker.subscribe(stays)
    other.publish(text(moves, "1") + text(stays, "1"))
    recorder.wait(lambda: len(recorder.messages) == 2, "both")
    move_slot(cluster, slot_of(broker, moves, cluster.nodes[0]), 0, 2)
    # Another server's run goes on with the log, so that its epoch is another one.
    recorder.wait(lambda: recorder.all_missed, "the move to be noticed")
    [missed] = recorder.all_missed
    assert missed == Missed((moves, other.position(moves)))
    positions = other.publish(text(moves, "2", "3") + text(stays, "2"))
    recorder.wait(lambda: len(recorder.messages) == 5, "messages after the move")
    assert positions[0] == Position(missed[1].epoch, missed[1].offset + 1)
    assert sorted(recorder.data[2:]) == [b"2", b"2", b"3"]
    assert set(recorder.all_resumed) == {Resumed(moves)}
    assert listeners(cluster) == [0, 1, 1]
    broker.unsubscribe(moves)
    assert broker.subscribe(moves) == positions[1]


def test_a_slot_can_be_subscribed_to_that_has_moved_before(
    cluster: RedisCluster, make_redis: MakeRedis, recorder: Recorder
) -> None:
    broker = make_redis(recorder, url=cluster.url, times=TIMES)
    channel = channel_in(broker, cluster, 0)
    broker.publish(text("warm", "up"))  # it knows where each slot is, or was
    move_slot(cluster, slot_of(broker, channel, cluster.nodes[0]), 0, 2)
    broker.subscribe(channel)
    broker.publish(text(channel, "1"))
    recorder.wait_for(b"1")
    assert listeners(cluster)[2] == 1


def test_messages_of_a_slot_that_is_moving_keep_their_order(
    cluster: RedisCluster, make_redis: MakeRedis
) -> None:
    broker = make_redis(url=cluster.url)
    channel = channel_in(broker, cluster, 0)
    slot = slot_of(broker, channel, cluster.nodes[0])
    for source, target in ((0, 1), (1, 2), (2, 0)):
        broker.publish(text(channel, "before"))
        move_slot(cluster, slot, source, target)
        positions = broker.publish(text(channel, *map(str, range(200))))
        assert [position.offset for position in positions] == list(range(1, 201))
        history = broker.history(channel, Position(positions[0].epoch, 100))
        assert [each.data for each in history.messages] == [
            str(i).encode() for i in range(100, 200)
        ]


def test_a_node_that_crashes_is_told_and_the_others_go_on(
    cluster: RedisCluster, make_redis: MakeRedis, recorder: Recorder
) -> None:
    broker = make_redis(recorder, url=cluster.url, times=TIMES)
    crashes, stays = (channel_in(broker, cluster, node) for node in (1, 2))
    broker.subscribe(crashes)
    broker.subscribe(stays)
    broker.publish(text(crashes, "1"))
    recorder.wait_for(b"1")
    node = cluster.nodes[1]
    node.kill()
    with pytest.raises(BrokerError):
        broker.publish(text(crashes, "lost"))
    broker.publish(text(stays, "2"))
    recorder.wait_for(b"2")
    node.path.unlink(missing_ok=True)
    node.start()
    recorder.wait_for_call("reconnected")
    assert [channel for channel, _ in recorder.all_missed] == [crashes]

    def published() -> bool:
        try:
            return bool(broker.publish(text(crashes, "3")))
        except BrokerError:
            return False

    wait_until(published, "the node to be part of the cluster again")
    recorder.wait_for(b"3")


def test_a_replica_that_takes_over_is_listened_to(
    cluster: RedisCluster, make_redis: MakeRedis, recorder: Recorder
) -> None:
    replica = cluster.start_node()
    cluster.nodes.append(replica)
    cluster.meet(replica, cluster.nodes[0])
    cluster.wait_for_agreement(replica)
    broker = make_redis(recorder, url=cluster.url, times=TIMES)
    channel = channel_in(broker, cluster, 1)
    with cluster.nodes[1].client() as client, replica.client() as second:
        primary = client.execute_command("CLUSTER", "MYID").decode()
        second.execute_command("CLUSTER", "REPLICATE", primary)
        wait_until(
            lambda: second.info("replication").get("master_link_status") == "up",
            "replication",
        )
        broker.subscribe(channel)
        broker.publish(text(channel, "1"))
        recorder.wait_for(b"1")
        cluster.nodes[1].kill()
        wait_until(lambda: second.info("replication")["role"] == "master", "its rise")
    recorder.wait(lambda: recorder.all_missed, "the change to be told")

    def published() -> bool:
        try:
            return bool(broker.publish(text(channel, "2")))
        except BrokerError:
            return False

    wait_until(published, "publishing to go on")
    recorder.wait_for(b"2")
    assert {each[0] for each in recorder.all_missed} == {channel}
