"""A process that serves nobody is told that nobody hears what it publishes; others are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.brokers.servers import RedisServer, redis_or_skip
from tests.clients import http as ask
from tests.processes import PATIENCE, Server, Servers, unused_port

pytestmark = pytest.mark.slow

TOLD = "in a process that serves nobody"
REMEDY = "set app.config['SOCKETS_BROKER_URL'] to a redis:// URL"

APP = """
import os
from flask import Flask
from flask_sockets2 import Sockets, Turbo
from flask_sockets2.sse import ServerSentEventsBlueprint

app = Flask(__name__)
app.config["SECRET_KEY"] = "secret"
app.config.from_prefixed_env()
sockets = Sockets(app)
turbo = Turbo(app)
sse = ServerSentEventsBlueprint("sse", __name__)
app.register_blueprint(sse, url_prefix="/events")

@app.cli.command("announce")
def announce():
    print("position", sockets.publish("news", "hello"))
"""

PUBLISHING = (
    APP
    + """
import threading, time
from flask_sockets2.application.state import state_of

def publish():
    print("publishing", flush=True)
    sockets.publish("news", "early")
    while not state_of(app).publisher._sender._unheard.settled:
        time.sleep(0.05)
        sockets.publish("news", "early")
    print("settled", flush=True)

threading.Thread(target=publish, daemon=True).start()
"""
)
"""It publishes from a thread before it serves, and says when no warning can come any more."""


def run(
    folder: Path,
    *command: str,
    source: str = "",
    stdin: str = "",
    environ: dict[str, str] | None = None,
) -> str:
    """Run Python with the application beside it, and return what it wrote."""
    (folder / "app.py").write_text(APP)
    (folder / "script.py").write_text(dedent(source))
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "FLASK_APP": "app", **(environ or {})},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.mark.parametrize(
    "publish",
    [
        "sockets.publish('news', 'hello')",
        "[sockets.publish('news', 'hello') for _ in range(1000)]",
        "sockets.publish_many([('news', 'hello')] * 300)",
        "turbo.push(turbo.append('<li>', 'todos'))",
        "turbo.broadcast_refresh_to('room', 5)",
        "with app.app_context(): sse.publish('hello')",
        "with app.app_context(): sse.progress('job', total=3).advance()",
        "@sockets.user_id\ndef user(): return None\nsockets.disconnect(user='ann')",
        "from multiprocessing.dummy import Pool\n"
        "Pool(4).map(lambda _: sockets.publish('news', 'hello'), range(20))",
    ],
)
def test_a_script_is_told_once_with_the_remedy(publish: str, tmp_path: Path) -> None:
    written = run(tmp_path, "script.py", source=f"from app import *\n{publish}\nprint('done')")
    assert written.count(TOLD) == 1
    assert REMEDY in written
    assert "done" in written


def test_a_script_whose_application_is_gone_is_told_too(tmp_path: Path) -> None:
    source = """
        import gc
        from flask import Flask
        from flask_sockets2 import Sockets

        def main():
            Sockets(Flask(__name__)).publish("news", "hello")

        main()
        gc.collect()
    """
    assert run(tmp_path, "script.py", source=source).count(TOLD) == 1


def test_a_command_of_the_application_is_told(tmp_path: Path) -> None:
    written = run(tmp_path, "-m", "flask", "announce")
    assert written.count(TOLD) == 1
    assert "position " in written


def test_a_shell_is_told_at_once(tmp_path: Path) -> None:
    lines = "from app import sockets\nsockets.publish('news', 'hello')\nprint('it goes on')\n"
    for command in (["-m", "flask", "shell"], ["-i", "-c", ""]):
        written = run(tmp_path, *command, stdin=lines)
        assert written.count(TOLD) == 1
        assert written.index(TOLD) < written.index("it goes on")


def test_a_process_that_goes_on_is_told_after_a_while(server_factory: Servers) -> None:
    """As Celery's workers, whose processes end without a word."""
    (server_factory.folder / "app.py").write_text(APP)
    (server_factory.folder / "worker.py").write_text(
        "import flask_sockets2.servers.serving as serving, signal\n"
        "serving._GRACE = 0.2\n"
        "from app import sockets\n"
        "sockets.publish('news', 'hello')\n"
        "signal.pause()\n"
    )
    worker = server_factory.start([sys.executable, "worker.py"])
    worker.wait_for_output(TOLD)


@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_a_child_of_multiprocessing_is_told_though_it_ends_soon(how: str, tmp_path: Path) -> None:
    source = f"""
        from multiprocessing import get_context

        def work():
            from app import sockets
            sockets.publish("news", "hello")

        if __name__ == "__main__":
            child = get_context({how!r}).Process(target=work)
            child.start()
            child.join()
    """
    assert run(tmp_path, "script.py", source=source).count(TOLD) == 1


def test_the_children_of_a_script_do_not_repeat_it(tmp_path: Path) -> None:
    source = """
        import os, sys
        from app import sockets
        sockets.publish("news", "hello")
        if os.fork() == 0:
            sys.exit()
        os.wait()
    """
    assert run(tmp_path, "script.py", source=source).count(TOLD) == 1


# -- no false alarm --------------------------------------------------------------------------------


def quiet(server: Server) -> None:
    """See that a server which has published before it served is not told, up to its end."""
    server.wait_for_output("^settled")
    os.killpg(server.process.pid, signal.SIGINT)  # as Ctrl-C does; Flask's reloader has a child
    server.process.wait(PATIENCE)
    assert "publishing" in server.output
    assert TOLD not in server.output


@pytest.mark.parametrize(
    ("worker", "args"),
    [
        ("flask_sockets2.worker", []),
        ("gthread", []),
        ("sync", []),
        ("gevent", []),
        ("flask_sockets2.worker", ["--preload"]),
    ],
)
def test_a_thread_of_gunicorn_is_not_told(
    worker: str, args: list[str], server_factory: Servers
) -> None:
    quiet(server_factory.gunicorn(PUBLISHING, worker=worker, args=args))


@pytest.mark.parametrize("args", [[], ["--reload"], ["--debug"]])
def test_a_thread_of_flask_run_is_not_told(args: list[str], server_factory: Servers) -> None:
    quiet(server_factory.flask_run(PUBLISHING, args=args))


@pytest.mark.parametrize(
    "serve",
    [
        "app.run(port={port})",
        "from flask_sockets2 import WebSocketServer\n"
        "WebSocketServer(('', {port}), app).serve_forever()",
        "from wsgiref.simple_server import make_server\n"
        "make_server('', {port}, app).serve_forever()",
    ],
)
def test_a_thread_of_a_program_with_a_server_of_its_own_is_not_told(
    serve: str, server_factory: Servers
) -> None:
    port = unused_port()
    quiet(server_factory.script(PUBLISHING + "\n" + serve.format(port=port), port=port))


def test_a_server_in_a_child_of_multiprocessing_is_not_told(server_factory: Servers) -> None:
    port = unused_port()
    serve = f"""
from multiprocessing import get_context

app.test_client().get("/")
child = get_context("fork").Process(target=app.run, kwargs={{"port": {port}}})
child.start()
child.join()
"""
    push = "def push(): return str(sockets.publish('news', 'hello'))"
    source = f"{APP}\n@app.get('/push')\n{push}\n"
    server = server_factory.script(source + serve, port=port)
    assert ask(server.url("/push"))[0] == 200
    os.killpg(server.process.pid, signal.SIGINT)
    server.process.wait(PATIENCE)
    assert TOLD not in server.output


def test_tests_are_not_told(tmp_path: Path) -> None:
    with_pytest = "from app import *\ndef test_it(): sockets.publish('news', 'hello')\n"
    (tmp_path / "test_app.py").write_text(with_pytest)
    written = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py")
    assert "1 passed" in written
    assert TOLD not in written


@pytest.mark.parametrize(
    "before",
    [
        "app.testing = True",
        "app.test_client().get('/')",
        "sockets.route('/echo')(lambda ws: None)\n"
        "with sockets.test_client(app).connect('/echo'): pass",
    ],
)
def test_tests_without_pytest_are_not_told(before: str, tmp_path: Path) -> None:
    source = f"from app import *\n{before}\nsockets.publish('news', 'hello')\n"
    assert run(tmp_path, "script.py", source=source) == ""


def test_a_test_client_that_comes_later_is_enough(tmp_path: Path) -> None:
    source = "from app import *\nsockets.publish('news', 'hello')\napp.test_client().get('/')\n"
    assert run(tmp_path, "script.py", source=source) == ""


def test_a_script_that_listens_to_itself_is_not_told(tmp_path: Path) -> None:
    source = """
        from app import *
        import threading
        import time
        heard = []
        def listen():
            with app.app_context():
                heard.append(next(messages))
        with app.app_context():
            messages = sse.messages("news")
            listener = threading.Thread(target=listen)
            listener.start()
            while not heard:
                sse.publish("hello", channel="news")
                time.sleep(0.01)
        listener.join()
    """
    assert TOLD not in run(tmp_path, "script.py", source=source)


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    yield from redis_or_skip()


def test_a_script_with_a_broker_for_all_is_not_told(tmp_path: Path, broker: RedisServer) -> None:
    environ = {"FLASK_SOCKETS_BROKER_URL": broker.url}
    source = "from app import *\nprint(sockets.publish('news', 'hello'))"
    assert TOLD not in run(tmp_path, "script.py", source=source, environ=environ)


def test_a_script_that_publishes_nothing_is_not_told(tmp_path: Path) -> None:
    source = "from app import *\nsockets.position('news')\nsockets.subscribers('news')"
    assert run(tmp_path, "script.py", source=source) == ""
