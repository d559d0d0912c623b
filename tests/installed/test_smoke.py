"""The source distribution and its wheel hold what they should, and what is installed works."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

import flask_sockets2
from flask_sockets2.turbo import npm
from flask_sockets2.turbo.testing import assert_turbo_stream
from tests.brokers.servers import RedisServer
from tests.builds import ROOT, VENDORED, build, checkout, members, run
from tests.clients import TIMEOUT, echoed, http, websocket
from tests.event_client import EventClient
from tests.processes import Server
from tests.test_docs import blocks
from tests.test_readme import BLOCKS, REPORT

from .conftest import EXTRAS, UNREACHABLE, Environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NOT_DISTRIBUTED = {".gitignore"}

LOGIN = """
@app.get("/login")
def login():
    session["role"] = "editor"
    return render_template_string("{{ csrf_token() }}")
"""

GREETING = """
@app.post("/greeting")
def greet():
    return str(sse.publish({"message": "Hello!"}, type="greeting"))
"""


def test_the_source_distribution_holds_the_checkout(sdist: Path, tracked: list[str]) -> None:
    with tarfile.open(sdist) as archive:
        files = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    assert set(tracked) - files == NOT_DISTRIBUTED


def test_its_wheel_is_that_of_the_checkout_with_turbo_js(wheel: Path, tmp_path: Path) -> None:
    ours = members(wheel)
    of_checkout = members(build("wheel", checkout(tmp_path), FLASK_SOCKETS2_TURBO="skip"))
    turbo = {name: ours.pop(name) for name in [*ours] if name.startswith(VENDORED)}
    assert {Path(name).name for name in turbo} == {npm.LICENCE, npm.UMD}
    assert npm.integrity_of(turbo[f"{VENDORED}/{npm.UMD}"]) == npm.INTEGRITY[npm.UMD]
    assert turbo[f"{VENDORED}/{npm.LICENCE}"].decode() == npm.LICENCE_TEXT
    for files in (ours, of_checkout):
        (record,) = (name for name in files if name.endswith("/RECORD"))
        del files[record]  # hashes, also of turbo.js
    assert ours == of_checkout


def test_it_is_installed_whole_typed_and_in_the_one_version(environment: Environment) -> None:
    version = flask_sockets2.__version__
    assert f"flask-sockets2-{version}" in environment.log
    program = (
        "import flask_sockets2, importlib.metadata;"
        "print(importlib.metadata.version('flask-sockets2'), flask_sockets2.__version__,"
        " flask_sockets2.__file__)"
    )
    said = environment.run("-W", "error", "-c", program).split()
    assert said == [version, version, str(environment.package / "__init__.py")]
    assert (environment.package / "py.typed").is_file()


def test_an_extra_comes_by_the_name_of_the_package_though_no_index_has_it(
    environment: Environment,
) -> None:
    """As errors and pages say, ``pip install "flask-sockets2[redis]"``: pip keeps what is there."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    command = [*pip, environment.python, "install", "--no-index", f"flask-sockets2[{EXTRAS}]"]
    ran = run(command, environment.folder)
    assert ran.returncode == 0, ran.stdout
    assert "Requirement already satisfied: flask-sockets2[" in ran.stdout


def test_the_first_commands_of_the_tutorial_install_a_clone(
    tracked: list[str], tmp_path: Path
) -> None:
    for name in tracked:
        copy = tmp_path / "flask_sockets2" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    (tmp_path / "python3").symlink_to(sys.executable)
    settings = {}
    for folder in ("cache", "config"):  # of pip, below the home directory
        settings[f"XDG_{folder.upper()}_HOME"] = str(Path.home() / f".{folder}")
    ran = run(
        ["bash", "-e", "-c", blocks(ROOT / "docs" / "tutorial.rst", "console")[0]],
        tmp_path,
        timeout=200,
        HOME=str(tmp_path),
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        FLASK_SOCKETS2_TURBO="skip",
        **settings,
    )
    if any(reason in ran.stdout for reason in UNREACHABLE):
        pytest.skip("pip does not reach its index")
    assert ran.returncode == 0, ran.stdout
    program = "import flask_sockets2.brokers.redis.broker, gunicorn; print(flask_sockets2.__file__)"
    said = run([tmp_path / "chat" / ".venv" / "bin" / "python", "-c", program], tmp_path)
    assert said.stdout.startswith(str(tmp_path / "chat" / ".venv")), said.stdout


@pytest.mark.parametrize("group", ["sockets", "turbo", "firehose"])
def test_its_commands_are_flasks(group: str, environment: Environment) -> None:
    assert "Usage:" in environment.run("-W", "error", "-m", "flask", group, "--help")


def test_its_fixture_is_declared_to_pytest(environment: Environment) -> None:
    program = (
        "from importlib.metadata import entry_points;"
        "print(*(each.value for each in entry_points(group='pytest11')))"
    )
    assert environment.run("-c", program).split() == ["flask_sockets2.pytest_plugin"]


@pytest.fixture(scope="module")
def broker() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


def test_the_programs_of_the_readme_are_served(
    environment: Environment,
    broker: RedisServer,
    gunicorn: Callable[..., Server],
    tmp_path: Path,
) -> None:
    """All as one application, in two workers, over the Redis of the extra."""
    first, *others = BLOCKS
    setting = f"app.config['SOCKETS_BROKER_URL'] = {broker.url!r}"
    source = "\n".join([first, setting, *others, GREETING, LOGIN])
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "report.html").write_text(REPORT)
    server = gunicorn(source, python=environment.python, args=["-w", "2"])

    assert echoed(server.ws_url("/echo"), "hello") == "hello"

    _, token, answer = http(server.url("/login"))
    editor = {"X-CSRF-Token": token, "Cookie": answer["Set-Cookie"].partition(";")[0]}

    with websocket(server.ws_url("/headlines?since=start")) as client:
        headers = {"Content-Type": "application/json", **editor}
        assert http(server.url("/headlines"), data=b'"It rains"', headers=headers)[0] == 204
        assert json.loads(client.recv(timeout=TIMEOUT))["data"] == "It rains"

    with EventClient(server.port, "/stream") as stream:
        stream.opened()
        assert http(server.url("/greeting"), data=b"", headers=editor)[0] == 200
        assert stream.next().type == "greeting"

    page = http(server.url("/votes"))[1]
    scripts = [http(urljoin(server.url(), url)) for url in re.findall(r' src="([^"]+)"', page)]
    assert [status for status, _, _ in scripts] == [200, 200], page
    assert npm.integrity_of(scripts[0][1].encode()) == npm.INTEGRITY[npm.UMD]
    for _, _, headers in scripts:
        assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    (position,) = re.findall(r'content="turbo:all" data-position="([^"]+)"', page)
    with websocket(server.ws_url(f"/turbo-stream?s=turbo:all&at={position}")) as client:
        http(server.url("/votes"), data=b"", headers=editor)
        texts = [json.loads(client.recv(timeout=TIMEOUT)) for _ in range(3)]
    (markup,) = [each["data"] for each in texts if "data" in each]
    assert_turbo_stream(markup, action="update", target="votes", text="1")

    assert "1, 2, 3" in http(server.url("/report"))[1]
    listed = environment.run("-W", "error", "-m", "flask", "sockets", "routes", cwd=tmp_path)
    assert {"/echo", "/headlines", "/turbo-stream"} <= set(listed.split())
