"""The package's lines under gunicorn: as gunicorn's own, once, and where its user wants them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.clients import http
from tests.processes import Server, Servers, _no_control_socket, accepts, unused_port

pytestmark = pytest.mark.slow

LOGGING = Path(__file__).parents[2] / "docs" / "logging.rst"

TIME = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] "

SOURCE = """
    import logging
    import os
    {early}
    from flask import Flask
    from flask_sockets2 import Sockets

    app = Flask(__name__)
    app.config["SOCKET_MAX_CHANNELS"] = 5  # the package warns of it when it is imported
    sockets = Sockets(app)
    logger = logging.getLogger("flask_sockets2.channels")

    @app.get("/")
    def index():
        {late}
        for level in ("debug", "info", "warning", "error"):
            getattr(logger, level)("a line of the level %s", level)
        try:
            raise LookupError("in a view")
        except LookupError:
            logger.exception("with its traceback")
        logging.getLogger("another").warning("of another library")
        return str(os.getpid())
"""

Start = Callable[..., Server]


@pytest.fixture
def start(server_factory: Servers) -> Start:
    """Starts gunicorn, whatever it logs; ``get`` asks it for the page."""

    def starting(
        *args: str, early: str = "", late: str = "pass", worker: str = "flask_sockets2.worker"
    ) -> Server:
        source = dedent(SOURCE).format(early=early, late=late)
        (server_factory.folder / "app.py").write_text(source)
        port = unused_port()
        command = [
            str(Path(sys.executable).with_name("gunicorn")),
            *("-b", f"127.0.0.1:{port}", "-k", worker, *_no_control_socket(), *args, "app:app"),
        ]
        server = server_factory.start(command)
        server.port = port
        server.wait_for(lambda: accepts(port), "it accepted connections")
        return server

    return starting


def got(server: Server) -> str:
    """Ask for the page; return the process that has answered."""
    status, pid, _ = http(server.url("/"))
    assert status == 200
    return pid


def lines(text: str, words: str) -> list[str]:
    return [line for line in text.splitlines() if words in line]


def level(server: Server, of: str) -> list[str]:
    return lines(server.output, f"a line of the level {of}")


def test_without_configuration_lines_are_as_gunicorns_own(start: Start) -> None:
    server = start()
    pid = got(server)
    server.wait_for_output("in a view")
    for name in ("warning", "error"):
        [line] = level(server, name)
        assert re.fullmatch(rf"{TIME}\[{pid}\] \[{name.upper()}\] a line of the level {name}", line)
    assert level(server, "info") == level(server, "debug") == []
    [line] = lines(server.output, "SOCKET_MAX_CHANNELS")
    assert re.match(rf"{TIME}\[{pid}\] \[WARNING\] there is no setting SOCKET_MAX_CHANNELS", line)
    [booted] = lines(server.output, "Booting worker")
    assert re.match(rf"{TIME}\[{pid}\] \[INFO\] ", booted)
    assert re.search(
        rf"{TIME}\[{pid}\] \[ERROR\] with its traceback\nTraceback .*\n(?:  .*\n)+LookupError: in",
        server.output,
    )
    assert lines(server.output, "of another library") == ["of another library"]


def test_what_is_logged_when_the_application_is_preloaded_is_so_too(start: Start) -> None:
    server = start("--preload")
    pid = got(server)
    [line] = lines(server.output, "there is no setting")
    assert re.match(rf"{TIME}\[{server.process.pid}\] \[WARNING\] ", line)
    server.wait_for(lambda: level(server, "warning"), "the line")
    [line] = level(server, "warning")
    assert re.match(rf"{TIME}\[{pid}\] \[WARNING\] ", line)


def test_they_go_to_the_file_of_gunicorns_errors(start: Start, tmp_path: Path) -> None:
    server = start("--error-logfile", str(tmp_path / "errors"))
    pid = got(server)
    server.wait_for(lambda: "in a view" in (tmp_path / "errors").read_text(), "the line")
    [line] = lines((tmp_path / "errors").read_text(), "of the level warning")
    assert re.match(rf"{TIME}\[{pid}\] \[WARNING\] ", line)
    assert level(server, "warning") == []


@pytest.mark.parametrize(
    ("of", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("ERROR", ["error"]),
        ("critical", []),
    ],
)
def test_the_level_of_gunicorn_counts(of: str, shown: list[str], start: Start) -> None:
    server = start("--log-level", of)
    got(server)
    server.wait_for_output("of another library")
    for name in ("debug", "info", "warning", "error"):
        assert len(level(server, name)) == (name in shown), name


@pytest.mark.parametrize(("of", "shown"), [("info", 1), ("warning", 0)])
def test_the_application_may_ask_for_more_than_gunicorn_shows(
    of: str, shown: int, start: Start
) -> None:
    early = 'logging.getLogger("flask_sockets2").setLevel(logging.INFO)'
    server = start("--log-level", of, early=early)
    got(server)
    server.wait_for_output("of another library")
    assert len(level(server, "info")) == shown
    assert level(server, "debug") == []


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize(
    "configure",
    [
        'logging.basicConfig(format="mine: %(message)s")',
        'logging.getLogger("flask_sockets2").addHandler(logging.StreamHandler());'
        ' logging.getLogger("flask_sockets2").handlers[-1].setFormatter('
        'logging.Formatter("mine: %(message)s"))',
    ],
    ids=["root", "the package's logger"],
)
def test_a_handler_of_the_applications_takes_them_alone(
    configure: str, when: str, start: Start
) -> None:
    server = start(**{when: configure})
    got(server)
    server.wait_for_output("of another library")
    assert level(server, "warning") == ["mine: a line of the level warning"]


def test_a_configuration_of_gunicorns_logging_takes_them_alone(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "logging.ini").write_text(
        dedent(
            """
            [loggers]
            keys=root
            [handlers]
            keys=console
            [formatters]
            keys=own
            [logger_root]
            level=INFO
            handlers=console
            [handler_console]
            class=StreamHandler
            formatter=own
            args=(sys.stderr,)
            [formatter_own]
            format=theirs: %(message)s
            """
        )
    )
    server = start("--log-config", str(tmp_path / "logging.ini"))
    got(server)
    server.wait_for_output("of another library")
    assert level(server, "info") == ["theirs: a line of the level info"]
    assert level(server, "warning") == ["theirs: a line of the level warning"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Shouting", "SHOUTING a line of the level warning"), ("Alone", "alone 30 a line of the")],
)
def test_a_logger_of_ones_own_writes_them(
    name: str, expected: str, start: Start, tmp_path: Path
) -> None:
    """One that derives from gunicorn's, and one that only has the same methods."""
    (tmp_path / "loggers.py").write_text(
        dedent(
            """
            import sys
            from gunicorn.glogging import Logger

            class Shouting(Logger):
                error_fmt = "SHOUTING %(message)s"

            class Alone:
                access_log_enabled = False

                def __init__(self, cfg):
                    self.cfg = cfg

                def log(self, level, message, *args, **options):
                    if args:
                        print("alone", level, message % args, file=sys.stderr, flush=True)

                def __getattr__(self, name):
                    return lambda *args, **options: None
            """
        )
    )
    server = start("--logger-class", f"loggers.{name}")
    got(server)
    server.wait_for_output("of another library")
    [line] = level(server, "warning")
    assert line.startswith(expected)


@pytest.mark.parametrize("worker", ["gthread", "gevent"])
def test_under_gunicorns_own_workers_the_lines_of_the_documentation_do_the_same(
    worker: str, start: Start, tmp_path: Path
) -> None:
    [recipe] = re.findall(
        r"code-block:: python\n\n((?:    .*\n|\n)*    def post_fork(?:.*\n|\n)+?)\n\S",
        LOGGING.read_text(),
    )
    (tmp_path / "gunicorn.conf.py").write_text(dedent(recipe))
    server = start(worker=worker)
    pid = got(server)
    server.wait_for_output("of another library")
    [line] = level(server, "warning")
    assert re.match(rf"{TIME}\[{pid}\] \[WARNING\] ", line)


def test_workers_that_follow_each_other_write_each_line_once(start: Start) -> None:
    server = start("--max-requests", "1")
    pids: list[str] = []

    def followed() -> bool:
        pids.append(got(server))
        return len(set(pids)) > 1

    server.wait_for(followed, "another worker", 30)
    server.wait_for(lambda: len(level(server, "warning")) >= len(pids), "the lines")
    assert len(level(server, "warning")) == len(pids)
