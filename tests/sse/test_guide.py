"""What ``docs/sse.rst`` says is so: its programs, its lines, its tables and its numbers.

So are the numbers of the page for who comes from Flask-SSE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_sockets2 import sse as package
from flask_sockets2.brokers.base import BrokerOptions
from flask_sockets2.extension import state_of
from flask_sockets2.signing import MAX_AGE
from flask_sockets2.sse import PubSub, access, interop, progress, settings, sse
from tests.brokers.servers import RedisServer
from tests.clients import http
from tests.processes import Server, wait_until
from tests.sse.reader import Reader
from tests.test_docs import PAGES, ROOT, blocks, run

if TYPE_CHECKING:
    from playwright.sync_api import Page

GUIDE = ROOT / "docs" / "sse.rst"
MIGRATION = ROOT / "docs" / "migrating-from-flask-sse.rst"
TEXT = " ".join((GUIDE.read_text() + MIGRATION.read_text()).split())

DEFAULTS = {
    "SSE_HEARTBEAT": settings.settings_of({}).heartbeat,
    "SSE_RETRY": settings.settings_of({}).retry,
    "SSE_OPEN_CHANNELS": settings.settings_of({}).open_channels,
    "SSE_MAX_AGE": MAX_AGE,
    "SSE_REDIS_URL": None,
    "REDIS_URL": None,
    "SSE_INTEROP": None,
}


@pytest.fixture
def guide() -> SimpleNamespace:
    """What the programs define."""
    return SimpleNamespace(**run(GUIDE))


@pytest.fixture
def client(guide: SimpleNamespace) -> FlaskClient:
    client: FlaskClient = guide.app.test_client()
    return client


def test_the_first_stream_brings_its_greeting_and_looks_as_it_is_shown(
    guide: SimpleNamespace, client: FlaskClient
) -> None:
    (shown,) = re.findall(r"looks like::\n\n((?:    .*\n|\n)+)", GUIDE.read_text())
    blocks = [
        block.strip().split("\n") for block in re.sub("^ +", "", shown, flags=re.M).split("\n\n")
    ]
    found = re.search(r'new EventSource\("(.*?)"\)', client.get("/").text)
    assert found is not None
    guide.app.config["SSE_HEARTBEAT"] = 0.1
    with Reader(guide.app, json.loads(f'"{found[1]}"')) as reader:
        assert client.post("/send").text == "Message sent!"
        for block in filter(any, blocks):
            lines = reader.block().split("\n")
            assert [line.partition(":")[0] for line in lines] == [
                line.partition(":")[0] for line in block
            ]
            assert [line for line in lines if line[:2] not in ("id", "re")] == [
                line for line in block if line[:2] not in ("id", "re")
            ]


def test_what_comes_after_the_reading_is_not_missing(
    guide: SimpleNamespace, client: FlaskClient
) -> None:
    stream = client.get("/headlines").json["stream"]  # type: ignore[index]
    with guide.app.app_context():
        sse.publish("It snows", channel="headlines")
    with Reader(guide.app, stream) as reader:
        assert reader.next().data == "It snows"


def test_mail_is_for_its_user(guide: SimpleNamespace, client: FlaskClient) -> None:
    with client.session_transaction() as session:
        session["user"] = "ada"
    for channel, status in (("news", 200), ("user:ada", 200), ("user:bob", 403), ("sse", 403)):
        response = client.get(f"/mail?channel={channel}")
        assert response.status_code == status
        response.close()


def test_the_import_is_told_by_another_process(
    guide: SimpleNamespace, client: FlaskClient, broker: RedisServer
) -> None:
    guide.app.config["SOCKETS_BROKER_URL"] = broker.url
    guide.import_rows(broker.url, "7", ["a", "b"])
    stream = client.get("/import/7").json["stream"]  # type: ignore[index]
    with Reader(guide.app, stream) as reader:
        assert reader.next().json() == {"state": "done", "value": 2, "total": 2, "text": "row 2"}
    guide.app.extensions["flask_sockets2"].channels.close()


def test_the_count_is_told_by_a_thread(guide: SimpleNamespace, client: FlaskClient) -> None:
    stream = client.post("/count/7", json=[1, 2]).json["stream"]  # type: ignore[index]
    with Reader(guide.app, stream) as reader:
        events = [reader.next()]
        while events[-1].json()["state"] == "running":
            events.append(reader.next())
    assert {event.type for event in events} == {"progress"}
    assert events[-1].json() == {"state": "done", "value": 2, "total": 2, "text": "row 2"}
    (shown,) = re.findall(r"``(\{\"state\".*?\})``", TEXT)
    assert json.loads(shown).keys() == events[0].json().keys()


def test_the_clock_and_the_countdown_stream(guide: SimpleNamespace, client: FlaskClient) -> None:
    text = client.get("/countdown").text
    assert text.startswith(":\n\nevent:count\ndata:3\nid:3\n\n")
    assert text.endswith("event:end\ndata:\n\n")
    guide.next_second.__globals__["time"] = SimpleNamespace(
        sleep=lambda seconds: None, strftime=lambda format: "12:00:00"
    )
    response = client.get("/clock")
    chunks: Any = iter(response.response)
    assert [next(chunks) for _ in range(2)] == [b":\n\n", b"data:12:00:00\n\n"]
    response.close()


def test_the_settings_are_complete_and_their_defaults_are_the_real_ones() -> None:
    rows = re.findall(r"^   \* - (``.*``)\n     - (\S+)$", GUIDE.read_text(), re.MULTILINE)
    words = {"none": None, "False": False}
    shown = {
        name: words[default] if default in words else float(default)
        for names, default in rows
        for name in re.findall(r"``(\w+)``", names)
    }
    assert shown == DEFAULTS
    module = re.findall(r"``((?:SSE|REDIS)_\w+)``", settings.__doc__ or "")
    assert set(module) == DEFAULTS.keys()


def test_every_setting_that_the_code_or_a_page_names_exists() -> None:
    folder = ROOT / "flask_sockets2" / "sse"
    for path in [*folder.glob("*.py"), *PAGES]:
        assert set(re.findall(r"\bSSE_[A-Z]{2}[A-Z_]*", path.read_text())) <= DEFAULTS.keys()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_method_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(r"(?<![\w./])sse\.(\w+)\(", path.read_text())
    assert set(named) <= set(dir(sse))
    named = re.findall(r"^ +from flask_sockets2\.sse import (.*)", path.read_text(), re.MULTILINE)
    assert {name for names in named for name in re.findall(r"\w+", names)} <= set(package.__all__)


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    options = BrokerOptions()
    for sentence in (
        f"``SOCKETS_HISTORY_SIZE`` messages ({options.history_size})",
        f"``SOCKETS_HISTORY_TTL`` seconds ({options.history_ttl:.0f})",
        f"several channels, up to {access.MOST_CHANNELS}",
        f"(``interval={progress._INTERVAL}``)",
        f"A listener that is {PubSub().maxsize} messages behind",
    ):
        assert sentence in TEXT, sentence
    assert interop._KEPT == 300
    assert "for five minutes after the last one" in TEXT
    assert 1 / progress._INTERVAL == 5
    assert "five a second at most" in TEXT


def test_streams_and_websockets_share_channels_by_the_name_that_is_given() -> None:
    assert 'that of ``channel="news"`` is ``sse:news``' in TEXT
    app = Flask(__name__)
    app.register_blueprint(sse, url_prefix="/stream")
    with app.app_context():
        sse.publish("x", channel="news")
    assert state_of(app).channels.position("sse:news").offset == 1


# -- in a browser ------------------------------------------------------------------------------


def test_the_page_of_the_guide_shows_its_greeting(
    gunicorn: Callable[..., Server], page: Page
) -> None:
    source = "".join(blocks(GUIDE, "python")[:2])
    server = gunicorn(source)
    page.goto(server.url("/"))
    assert http(server.url("/send"), data=b"")[0] == 200
    wait_until(lambda: page.inner_text("#greetings") == "Hello!", "the greeting", 10)
