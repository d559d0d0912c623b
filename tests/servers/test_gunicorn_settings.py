"""The table of gunicorn's settings in ``docs/servers.rst``: complete, and true row by row.

Most settings are set together, in a few servers, and each of them has its check. For some a test
elsewhere is the check, which is named then.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from gunicorn.config import make_settings
from gunicorn.workers.ggevent import GeventWorker

from flask_sockets2 import Worker
from tests.clients import echoed
from tests.clients import http as ask
from tests.processes import (
    Certificate,
    Server,
    ServerFailed,
    make_certificate,
    servers_in,
    unused_port,
    wait_until,
)
from tests.wire_client import TIMEOUT, connect, frame

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"

NEWER_THAN_OUR_LOWER_BOUND = {"http2_cleartext", "websocket_max_message_size"}


def table() -> dict[str, str]:
    """What the table says of each setting: obeyed, refused or no meaning."""
    text = (DOCS / "servers.rst").read_text()
    section = text.partition("gunicorn's settings\n---")[2].partition("\nThe environment variable")[
        0
    ]
    said: dict[str, str] = {}
    for row in section.split("\n   * - ")[2:]:
        names, verdict = row.split("\n     - ")
        for name in re.findall("``([a-z0-9_]+)``", names):
            assert name not in said, f"{name} is in two rows"
            said[name] = verdict.partition(":")[0].strip()
    return said


TABLE = table()


def test_the_table_has_every_setting_of_gunicorn_and_no_other() -> None:
    """A setting of a newer gunicorn is not in it: decide what our worker does with it."""
    installed = set(make_settings())
    assert installed - set(TABLE) == set()
    assert set(TABLE) - installed <= NEWER_THAN_OUR_LOWER_BOUND
    assert set(TABLE.values()) == {"obeyed", "refused", "no meaning"}


# -- one server with as many settings as go together ---------------------------------------

APP = """
    import extra
    import json
    import os
    import sys

    from flask import Flask
    from flask_sockets2 import Sockets

    print("a line on standard output", flush=True)
    app = Flask(__name__)
    sockets = Sockets(app)


    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)


    @sockets.route("/server")
    def server(ws):
        server = ws.handler.server
        ws.send(json.dumps({"size": server.pool.size, "drain": server.drain_time}))


    @app.route("/facts")
    def facts():
        os.umask(umask := os.umask(0))
        return {
            "pid": os.getpid(),
            "cwd": os.getcwd(),
            "FOO": os.environ.get("FOO"),
            "extra": extra.__file__,
            "umask": umask,
            "uid": os.getuid(),
            "gid": os.getgid(),
        }


    @app.route("/dirty")
    def dirty():
        from gunicorn.dirty import get_dirty_client
        return str(get_dirty_client().execute("chores:Chores", "add", 1, 2))
"""

CHORES = """
    from gunicorn.dirty import DirtyApp


    class Chores(DirtyApp):
        def __call__(self, action, *args, **kwargs):
            return getattr(self, action)(*args, **kwargs)

        def add(self, one, two):
            return one + two
"""

HOOKS = [
    *("on_starting:server", "on_reload:server", "when_ready:server", "on_exit:server"),
    *("pre_fork:server,worker", "post_fork:server,worker", "child_exit:server,worker"),
    *("post_worker_init:worker", "worker_int:worker", "worker_exit:server,worker"),
    *("nworkers_changed:server,new,old", "on_dirty_starting:arbiter"),
    *("dirty_post_fork:arbiter,worker", "dirty_worker_init:worker"),
    "dirty_worker_exit:arbiter,worker",
]

NOTING = """
import json, os


def note(name, **told):
    with open({file!r}, "a") as log:
        print(json.dumps([name, os.getpid(), told]), file=log)

"""


def noting(hooks: list[str], file: Path) -> str:
    text = NOTING.format(file=str(file))
    for hook in hooks:
        name, _, parameters = hook.partition(":")
        told = ""
        if name == "nworkers_changed":
            told = ", new=new, old=old"
        if name == "post_worker_init":
            told = (
                ", most=worker.max_requests, called=worker.cfg.proc_name, tmp=os.readlink("
                "f'/proc/self/fd/{worker.tmp.fileno()}'), backlog=places(worker.sockets[0])"
            )
        text += f"\ndef {name}({parameters}):\n    note({name!r}{told})\n"
    return text


BACKLOG = """

def places(listener):
    import socket, struct
    # Of a listening socket tcp_info tells how many may wait (linux/tcp.h).
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack("8B24I", info)[13]

"""


@dataclass
class Evidence:
    """What a server with all of these settings has left behind."""

    folder: Path
    set: dict[str, Any]
    server: Server
    facts: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    dirty: str = ""
    workers: set[int] = field(default_factory=set)
    modes: dict[str, int] = field(default_factory=dict)
    controlled: str = ""
    pidfile: str = ""
    over_unix_socket: int = 0
    told: bytes = b""
    """What statsd and syslog were told."""

    @property
    def hooks(self) -> list[tuple[str, int, dict[str, Any]]]:
        return [json.loads(line) for line in self.read("hooks.log").splitlines()]

    def hook(self, name: str) -> dict[str, Any]:
        return next(told for called, _, told in self.hooks if called == name)

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def settings_in(folder: Path, udp: int) -> dict[str, Any]:
    for name in ("elsewhere", "library", "temporary"):
        (folder / name).mkdir()
    (folder / "library" / "extra.py").write_text("")
    (folder / "elsewhere" / "app.py").write_text(dedent(APP))
    (folder / "elsewhere" / "chores.py").write_text(dedent(CHORES))
    return {
        "wsgi_app": "app:app",
        "bind": ["127.0.0.1:0", f"unix:{folder}/http.sock"],
        "backlog": 77,
        "workers": 2,
        "worker_class": "flask_sockets2.worker",
        "worker_connections": 7,
        "max_requests": 1000,
        "max_requests_jitter": 50,
        "graceful_timeout": 10,
        "chdir": str(folder / "elsewhere"),
        "pythonpath": str(folder / "library"),
        "raw_env": ["FOO=bar"],
        "pidfile": str(folder / "pid"),
        "worker_tmp_dir": str(folder / "temporary"),
        "umask": 0o027,
        "user": os.getuid(),
        "group": os.getgid(),
        "initgroups": True,
        "proc_name": "tests-of-settings",
        "loglevel": "debug",
        "errorlog": str(folder / "error.log"),
        "capture_output": True,
        "accesslog": str(folder / "access.log"),
        "access_log_format": "asked %(m)s %(U)s",
        "statsd_host": f"127.0.0.1:{udp}",
        "statsd_prefix": "tested",
        "dogstatsd_tags": "color:red",
        "syslog": True,
        "syslog_addr": f"udp://127.0.0.1:{udp}",
        "syslog_prefix": "settings",
        "syslog_facility": "local3",
        "control_socket": str(folder / "control.sock"),
        "control_socket_mode": 0o660,
        "dirty_apps": ["chores:Chores"],
        "dirty_workers": 1,
        "dirty_threads": 2,
        "dirty_timeout": 60,
        "dirty_graceful_timeout": 5,
    }


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evidence]:
    # Unix sockets have short names.
    with tempfile.TemporaryDirectory() as name, socket.socket(type=socket.SOCK_DGRAM) as listener:
        folder = Path(name)
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        listener.setblocking(False)
        settings = settings_in(folder, listener.getsockname()[1])
        known = {name: value for name, value in settings.items() if name in make_settings()}
        config = noting(HOOKS, folder / "hooks.log") + BACKLOG
        config += "".join(f"{name} = {value!r}\n" for name, value in known.items())
        (folder / "settings.py").write_text(config)
        with servers_in(tmp_path_factory.mktemp("evidence")) as servers:
            gunicorn = Path(sys.executable).with_name("gunicorn")
            server = servers.start([gunicorn, "-c", folder / "settings.py"])
            found = Evidence(folder, known, server)
            try:
                collect(found)
            except ServerFailed as exc:
                raise ServerFailed(f"{exc}; its log:\n{found.read('error.log')}") from None
            found.told = received(listener)
            yield found


def collect(found: Evidence) -> None:
    """Have everything happen that a hook or a log is told of, up to the end of the server."""
    server, folder = found.server, found.folder

    def log(pattern: str) -> re.Match[str]:
        server.wait_for(lambda: re.search(pattern, found.read("error.log")), pattern)
        match = re.search(pattern, found.read("error.log"))
        assert match is not None
        return match

    def called(name: str, count: int = 1) -> None:
        def enough() -> bool:
            return sum(call[0] == name for call in found.hooks) >= count

        server.wait_for(enough, f"{count} calls of {name}")

    server.port = int(log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
    called("post_worker_init", 2)
    called("dirty_worker_init")
    found.facts = json.loads(ask(server.url("/facts"))[1])
    found.workers = {call[1] for call in found.hooks if call[0] == "post_worker_init"}
    with connect(server.port, "/server") as client:
        found.sizes = json.loads(client.message())
    found.dirty = ask(server.url("/dirty"))[1]
    found.modes = {name: mode_of(folder / name) for name in ("http.sock", "control.sock")}
    found.pidfile = found.read("pid")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(folder / "http.sock"))
        sock.sendall(b"GET /facts HTTP/1.0\r\n\r\n")
        found.over_unix_socket = int(sock.makefile("rb").readline().split()[1])
    program = Path(sys.executable).with_name("gunicornc")
    found.controlled = subprocess.run(
        [program, "-s", folder / "control.sock", "-c", "show workers"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    ).stdout
    os.kill(server.process.pid, signal.SIGTTIN)
    called("nworkers_changed", 2)
    called("post_worker_init", 3)
    os.kill(server.process.pid, signal.SIGHUP)
    called("on_reload")
    called("post_worker_init", 5)
    os.kill(server.process.pid, signal.SIGINT)
    server.process.wait(TIMEOUT)


def received(listener: socket.socket) -> bytes:
    told = []
    while True:
        try:
            told.append(listener.recv(65536))
        except BlockingIOError:
            return b"\n".join(told)


def hooked(name: str) -> Callable[[Evidence], None]:
    def check(found: Evidence) -> None:
        assert name in {called for called, _, _ in found.hooks}

    return check


def fact(name: str, expected: Callable[[Evidence], Any]) -> Callable[[Evidence], None]:
    def check(found: Evidence) -> None:
        assert found.facts[name] == expected(found)

    return check


def told(*patterns: bytes) -> Callable[[Evidence], None]:
    def check(found: Evidence) -> None:
        for pattern in patterns:
            assert re.search(pattern, found.told, re.MULTILINE), pattern

    return check


def _bind(found: Evidence) -> None:
    assert found.over_unix_socket == 200


def _backlog(found: Evidence) -> None:
    assert found.hook("post_worker_init")["backlog"] == 77


def _workers(found: Evidence) -> None:
    assert len(found.workers) == 2
    assert found.facts["pid"] in found.workers


def _worker_class(found: Evidence) -> None:
    assert "Using worker: flask_sockets2.worker" in found.read("error.log")


def _max_requests_jitter(found: Evidence) -> None:
    assert 1000 <= found.hook("post_worker_init")["most"] <= 1050


def _worker_connections(found: Evidence) -> None:
    assert found.sizes["size"] == 7


def _graceful_timeout(found: Evidence) -> None:
    assert found.sizes["drain"] == pytest.approx(7.0)


def _pidfile(found: Evidence) -> None:
    assert found.pidfile.strip() == str(found.server.process.pid)


def _worker_tmp_dir(found: Evidence) -> None:
    assert found.hook("post_worker_init")["tmp"].startswith(str(found.folder / "temporary"))


def _umask(found: Evidence) -> None:
    assert found.modes["http.sock"] == 0o777 & ~0o027


def _owner(found: Evidence) -> None:
    """Another user could not read this folder, so it is the tests' own; gunicorn changes it."""
    assert (found.facts["uid"], found.facts["gid"]) == (os.getuid(), os.getgid())
    assert Worker.init_process is GeventWorker.init_process


def _proc_name(found: Evidence) -> None:
    """setproctitle, which is not there, would have it as the process's name."""
    assert found.hook("post_worker_init")["called"] == "tests-of-settings"


def _loglevel(found: Evidence) -> None:
    assert "[DEBUG] Current configuration" in found.read("error.log")
    assert "[DEBUG] GET /facts" in found.read("error.log"), "of the hook pre_request"


def _capture_output(found: Evidence) -> None:
    assert "\na line on standard output\n" in found.read("error.log")
    assert "a line on standard output" not in found.server.output


def _accesslog(found: Evidence) -> None:
    assert {"asked GET /facts", "asked GET /server"} <= set(found.read("access.log").splitlines())


def _control_socket(found: Evidence) -> None:
    for pid in found.workers:
        assert str(pid) in found.controlled


def _control_socket_mode(found: Evidence) -> None:
    assert found.modes["control.sock"] == 0o660


def _dirty(found: Evidence) -> None:
    assert found.dirty == "3"


def _nworkers_changed(found: Evidence) -> None:
    changes = [call[2] for call in found.hooks if call[0] == "nworkers_changed"]
    assert {"new": 3, "old": 2} in changes


STATSD = rb"^tested\.gunicorn\.request\.status\.101:1\|c\|@1\.0\|#color:red$"
LOCAL3 = rb"^<15[89]>gunicorn\.settings\.access: \[\d+\] asked GET /facts"

TOGETHER: dict[str, Callable[[Evidence], None]] = {
    **{name.partition(":")[0]: hooked(name.partition(":")[0]) for name in HOOKS},
    "nworkers_changed": _nworkers_changed,
    "config": hooked("on_starting"),
    "wsgi_app": fact("cwd", lambda found: str(found.folder / "elsewhere")),
    "chdir": fact("cwd", lambda found: str(found.folder / "elsewhere")),
    "pythonpath": fact("extra", lambda found: str(found.folder / "library" / "extra.py")),
    "raw_env": fact("FOO", lambda _: "bar"),
    "bind": _bind,
    "backlog": _backlog,
    "workers": _workers,
    "worker_class": _worker_class,
    "worker_connections": _worker_connections,
    "max_requests_jitter": _max_requests_jitter,
    "graceful_timeout": _graceful_timeout,
    "pidfile": _pidfile,
    "worker_tmp_dir": _worker_tmp_dir,
    "umask": _umask,
    "user": _owner,
    "group": _owner,
    "initgroups": _owner,
    "proc_name": _proc_name,
    "loglevel": _loglevel,
    "errorlog": _worker_class,
    "capture_output": _capture_output,
    "accesslog": _accesslog,
    "access_log_format": _accesslog,
    "statsd_host": told(STATSD),
    "statsd_prefix": told(STATSD),
    "dogstatsd_tags": told(STATSD),
    "syslog": told(LOCAL3),
    "syslog_addr": told(LOCAL3),
    "syslog_prefix": told(LOCAL3),
    "syslog_facility": told(LOCAL3),
    "control_socket": _control_socket,
    "control_socket_mode": _control_socket_mode,
    **dict.fromkeys(
        ("dirty_apps", "dirty_workers", "dirty_threads", "dirty_timeout", "dirty_graceful_timeout"),
        _dirty,
    ),
}


# -- TLS -----------------------------------------------------------------------------------

PLAIN = """
    import os

    from flask import Flask
    from flask_sockets2 import Sockets

    print(f"imported in {os.getpid()}", flush=True)
    app = Flask(__name__)
    sockets = Sockets(app)


    @sockets.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)


    @app.route("/")
    def page():
        return "a page"


    @app.route("/busy")
    def busy():
        while True:
            pass


    def paste_app(global_conf, **local_conf):
        app.config["CONF"] = {**global_conf, **local_conf}
        return app


    @app.route("/conf")
    def conf():
        return {key: value for key, value in app.config["CONF"].items() if len(key) < 4}
"""

LOADED = """
def post_worker_init(worker):
    worker.log.info("a worker has loaded the application")
"""

TLS = """
import ssl


def ssl_context(config, factory):
    context = factory()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
"""

CIPHER = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Certificate]]:
    folder = tmp_path_factory.mktemp("secure")
    made = make_certificate(folder)
    (folder / "tls.py").write_text(TLS + LOADED)
    args = ["-c", folder / "tls.py", "--certfile", made.certfile, "--keyfile", made.keyfile]
    args += ["--ca-certs", made.cafile, "--cert-reqs", "2", "--ciphers", CIPHER]
    with servers_in(folder) as servers:
        yield servers.gunicorn(PLAIN, args=args, secure=True), made


def tls_session(server: Server, context: ssl.SSLContext) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)
    return context.wrap_socket(sock, server_hostname="127.0.0.1")


def answers(server: Server, context: ssl.SSLContext) -> bool:
    try:
        with tls_session(server, context) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.recv(1) != b""
    except OSError:
        return False


@pytest.mark.parametrize(
    "name", ["certfile", "keyfile", "ca_certs", "cert_reqs", "ciphers", "ssl_context"]
)
def test_a_setting_of_tls_is_obeyed(name: str, secure: tuple[Server, Certificate]) -> None:
    assert TABLE[name] == "obeyed"
    server, made = secure
    context = made.client_context()
    if name in ("ca_certs", "cert_reqs"):  # a client without a certificate is turned away
        assert not answers(server, context)
    context.load_cert_chain(made.certfile, made.keyfile)
    with tls_session(server, context) as sock:
        assert sock.version() == "TLSv1.2"
        cipher = sock.cipher()
        assert cipher is not None
        assert cipher[0] in CIPHER.split(":")
    assert echoed(server.ws_url("/echo"), "hello", ssl=context) == "hello"


# -- one server with settings that mean nothing --------------------------------------------

MEANINGLESS: dict[str, Any] = {
    "threads": 4,
    "sendfile": False,
    "http_parser": "python",
    "do_handshake_on_connect": True,
    "suppress_ragged_eofs": False,
    "ssl_version": "TLSv1_2",
    "http2_max_concurrent_streams": 1,
    "http2_initial_window_size": 1,
    "http2_max_frame_size": 16384,
    "http2_max_header_list_size": 1,
    "uwsgi_allow_ips": "192.0.2.1",
    "tmp_upload_dir": "/nowhere",
    "asgi_loop": "asyncio",
    "asgi_lifespan": "on",
    "asgi_disconnect_grace_period": 0,
    "root_path": "/elsewhere",
    "websocket_max_message_size": 1,
}


@pytest.fixture(scope="module")
def indifferent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("indifferent")
    known = {name: value for name, value in MEANINGLESS.items() if name in make_settings()}
    lines = [f"{name} = {value!r}" for name, value in known.items()]
    (folder / "settings.py").write_text("\n".join([*lines, LOADED]))
    with servers_in(folder) as servers:
        yield servers.gunicorn(PLAIN, args=["-c", folder / "settings.py"])


@pytest.mark.parametrize("name", sorted(MEANINGLESS))
def test_a_setting_without_meaning_changes_nothing(name: str, indifferent: Server) -> None:
    assert TABLE[name] == "no meaning"
    assert ask(indifferent.url("/"))[:2] == (200, "a page")
    assert echoed(indifferent.ws_url("/echo"), "x" * 1000) == "x" * 1000


# -- settings that are tried alone ---------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``start("--daemon", config="...")``: our worker with some settings."""
    with servers_in(tmp_path) as servers:

        def started(*args: str | Path, config: str = "", target: str = "app:app") -> Server:
            (tmp_path / "alone.py").write_text(dedent(config) + LOADED)
            args = ("-c", tmp_path / "alone.py", *args)
            return servers.gunicorn(PLAIN, args=args, target=target)

        yield started


Start = Callable[..., Server]


def test_preload_app(start: Start) -> None:
    server = start("--preload", "--workers", "2")
    assert re.findall(r"imported in (\d+)", server.output) == [str(server.process.pid)]
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_reuse_port(tmp_path: Path) -> None:
    """Each worker has a socket of its own, which the log does not name."""
    (tmp_path / "app.py").write_text(dedent(PLAIN))
    control = "control_socket_disable = True\n"  # no setting of older versions
    (tmp_path / "alone.py").write_text(control + LOADED)
    port = unused_port()
    command = [Path(sys.executable).with_name("gunicorn"), "-k", "flask_sockets2.worker"]
    args = ["--reuse-port", "-w", "2", "-b", f"127.0.0.1:{port}", "-c", "alone.py", "app:app"]
    with servers_in(tmp_path) as servers:
        server = servers.start([*command, *args])
        server.port = port
        server.wait_for(lambda: server.output.count("has loaded") == 2, "both workers")
        listening = [
            connection
            for worker in psutil.Process(server.process.pid).children()
            for connection in worker.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 2
        with open("/proc/net/tcp") as table:  # one line for each socket, however many share it
            assert sum(f":{port:04X} 00000000:0000 0A" in line for line in table) == 2
        assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_timeout_and_worker_abort(start: Start) -> None:
    config = """
        def worker_abort(worker):
            worker.log.info("the hook worker_abort")
    """
    server = start("--timeout", "2", config=config)
    with (
        connect(server.port) as client,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        client.send(frame(0x1, b"hello"))
        assert client.message() == b"hello"
        sock.sendall(b"GET /busy HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for_output("WORKER TIMEOUT")
    server.wait_for_output("the hook worker_abort")
    server.wait_for(lambda: server.output.count("has loaded") == 2, "another worker")
    assert ask(server.url("/"))[0] == 200


@pytest.mark.parametrize("changed", ["app.py", "extra.txt"])
def test_reload_and_its_engine_and_extra_files(changed: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "extra.txt").write_text("one")
    extra = ["--reload-extra-file", tmp_path / "extra.txt"]
    server = start("--reload", "--reload-engine", "poll", *extra)
    with connect(server.port) as client:
        now = (tmp_path / changed).stat().st_mtime
        os.utime(tmp_path / changed, (now + 10, now + 10))
        assert client.closing()[0] == 1001
    server.wait_for_output(f"Worker reloading: .*{changed} modified")
    server.wait_for(lambda: server.output.count("has loaded") == 2, "another worker")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


def test_spew(tmp_path: Path) -> None:
    """Each line that runs is written; up to a request that takes far too long."""
    (tmp_path / "app.py").write_text(dedent(PLAIN))
    command = [Path(sys.executable).with_name("gunicorn"), "-k", "flask_sockets2.worker"]
    with servers_in(tmp_path) as servers:
        server = servers.start([*command, "--spew", "-b", "127.0.0.1:0", "app:app"])
        server.wait_for_output(r"^flask_sockets2:\d+: ", 60.0)


def test_daemon(start: Start, tmp_path: Path) -> None:
    log, pidfile = tmp_path / "daemon.log", tmp_path / "daemon.pid"
    args = ["--daemon", "--enable-stdio-inheritance", "--error-logfile", log, "--pid", pidfile]
    with pytest.raises(ServerFailed, match="ended before"):
        start(*args)
    try:
        wait_until(lambda: log.exists() and "has loaded" in log.read_text(), "a worker", 30.0)
        port = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())
        assert port is not None
        assert ask(f"http://127.0.0.1:{port[1]}/")[0] == 200
    finally:
        daemon = psutil.Process(int(pidfile.read_text()))
        daemon.terminate()
        daemon.wait(TIMEOUT)


@pytest.mark.parametrize("how", ["check", "print"])
def test_check_config_and_print_config(how: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(dedent(PLAIN))
    gunicorn = Path(sys.executable).with_name("gunicorn")
    told = subprocess.run(
        # Only a worker looks at what it refuses.
        [gunicorn, "-k", "flask_sockets2.worker", "--protocol=uwsgi", f"--{how}-config", "app:app"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert ("flask_sockets2.worker" in told.stdout) is (how == "print")


def test_paste_and_raw_paste_global_conf(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("paste.deploy", reason="no PasteDeploy: pip install PasteDeploy")
    (tmp_path / "site.ini").write_text("[app:main]\npaste.app_factory = app:paste_app\nb = 2\n")
    server = start(
        "--paste",
        tmp_path / "site.ini",
        "--paste-global",
        "a=1",
        "--pythonpath",
        tmp_path,
        target="",
    )
    assert json.loads(ask(server.url("/conf"))[1]) == {"a": "1", "b": "2"}


LOGGING: dict[str, Any] = {
    "version": 1,
    "formatters": {"marked": {"format": "MARKED %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "marked"}},
    "loggers": {"gunicorn.error": {"level": "INFO", "handlers": ["console"]}},
}

LOGGING_INI = """
[loggers]
keys = root, gunicorn.error

[handlers]
keys = console

[formatters]
keys = marked

[logger_root]
handlers =

[logger_gunicorn.error]
level = INFO
handlers = console
qualname = gunicorn.error

[handler_console]
class = StreamHandler
formatter = marked
args = ()

[formatter_marked]
format = MARKED %(message)s
"""


@pytest.mark.parametrize("name", ["logconfig", "logconfig_dict", "logconfig_json"])
def test_a_configuration_of_logging(name: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "logging.ini").write_text(LOGGING_INI)
    (tmp_path / "logging.json").write_text(json.dumps(LOGGING))
    value = {
        "logconfig": str(tmp_path / "logging.ini"),
        "logconfig_json": str(tmp_path / "logging.json"),
        "logconfig_dict": LOGGING,
    }[name]
    server = start(config=f"{name} = {value!r}\n")
    server.wait_for_output("^MARKED a worker has loaded the application")


def test_disable_redirect_access_to_syslog(start: Start) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.setblocking(False)
        address = f"udp://127.0.0.1:{syslog.getsockname()[1]}"
        only_errors = "--disable-redirect-access-to-syslog"
        server = start("--log-syslog", "--log-syslog-to", address, only_errors)
        assert ask(server.url("/"))[0] == 200
        server.terminate()
        told = received(syslog)
    assert b".error: [" in told
    assert b".access: [" not in told


def test_control_socket_disable(start: Start, tmp_path: Path) -> None:
    """All tests are started with it: the socket is one for all gunicorns of a user."""
    server = start("--control-socket", "control.sock")
    assert "Control socket" not in server.output
    assert not (tmp_path / "control.sock").exists()


def test_pre_exec(start: Start) -> None:
    config = """
        def pre_exec(server):
            server.log.info("the hook pre_exec")
    """
    server = start(config=config)
    os.kill(server.process.pid, signal.SIGUSR2)
    server.wait_for_output("the hook pre_exec")
    server.wait_for(lambda: server.output.count("has loaded") == 2, "the new server")
    assert echoed(server.ws_url("/echo"), "hello") == "hello"


@pytest.mark.parametrize(
    "args",
    [
        ["--protocol", "uwsgi"],
        ["--permit-obsolete-folding"],
        ["--permit-unconventional-http-version"],
        ["--strip-header-spaces"],
    ],
)
def test_a_refused_setting_ends_the_server_with_one_line(args: list[str], start: Start) -> None:
    with pytest.raises(ServerFailed) as raised:
        start(*args)
    said = str(raised.value)
    name = args[0].removeprefix("--").replace("-", "_")
    assert re.search(rf"\[CRITICAL\] the setting {name} is .*gunicorn -k gevent", said)
    assert "App failed to load" in said
    assert "Traceback" not in said


def test_a_script_name_that_is_none_ends_the_server(tmp_path: Path) -> None:
    with (
        servers_in(tmp_path) as servers,
        pytest.raises(ServerFailed, match="such as /app, got 'x'"),
    ):
        servers.gunicorn(PLAIN, environ={"SCRIPT_NAME": "x"})


HERE = "tests/servers/test_gunicorn_settings.py"
RULES = "tests/servers/test_rules.py"
REQUESTS = "tests/servers/test_gunicorn_requests.py"
HOOKS_TEST = "tests/servers/test_hooks.py"
GUNICORN = "tests/servers/test_gunicorn.py"

ALONE: dict[str, tuple[str, str]] = {
    "preload_app": (HERE, "test_preload_app"),
    "reuse_port": (HERE, "test_reuse_port"),
    "timeout": (HERE, "test_timeout_and_worker_abort"),
    "worker_abort": (HERE, "test_timeout_and_worker_abort"),
    **dict.fromkeys(
        ("reload", "reload_engine", "reload_extra_files"),
        (HERE, "test_reload_and_its_engine_and_extra_files"),
    ),
    "spew": (HERE, "test_spew"),
    "daemon": (HERE, "test_daemon"),
    "enable_stdio_inheritance": (HERE, "test_daemon"),
    "check_config": (HERE, "test_check_config_and_print_config"),
    "print_config": (HERE, "test_check_config_and_print_config"),
    "default_proc_name": (HERE, "test_check_config_and_print_config"),
    "paste": (HERE, "test_paste_and_raw_paste_global_conf"),
    "raw_paste_global_conf": (HERE, "test_paste_and_raw_paste_global_conf"),
    **dict.fromkeys(
        ("logconfig", "logconfig_dict", "logconfig_json"), (HERE, "test_a_configuration_of_logging")
    ),
    "disable_redirect_access_to_syslog": (HERE, "test_disable_redirect_access_to_syslog"),
    "control_socket_disable": (HERE, "test_control_socket_disable"),
    "pre_exec": (HERE, "test_pre_exec"),
    "logger_class": (HOOKS_TEST, "test_a_logger_of_ones_own_is_given_request_and_response"),
    "enable_backlog_metric": (HOOKS_TEST, "test_statsd_counts_requests_whose_clients_have_left"),
    "pre_request": (HOOKS_TEST, "test_hooks_see_a_request_and_its_answer"),
    "post_request": (HOOKS_TEST, "test_hooks_see_a_websocket_from_its_handshake_to_its_end"),
    "max_requests": (GUNICORN, "test_max_requests_restarts_the_worker_and_closes_its_websockets"),
    "keepalive": (REQUESTS, "test_no_keep_alive_closes_each_connection"),
    **dict.fromkeys(
        ("limit_request_line", "limit_request_fields", "limit_request_field_size"),
        (REQUESTS, "test_limits_that_are_set"),
    ),
    "forwarded_allow_ips": (REQUESTS, "test_nobody_else_says_the_scheme"),
    "secure_scheme_headers": (RULES, "test_headers_that_disagree_on_the_scheme_are_refused"),
    "forwarder_headers": (REQUESTS, "test_they_are_refused_where_header_map_says_so"),
    "header_map": (REQUESTS, "test_they_are_mapped_where_header_map_is_dangerous"),
    "proxy_protocol": (REQUESTS, "test_a_proxy_says_where_its_client_is"),
    "proxy_allow_ips": (REQUESTS, "test_only_allowed_peers_and_versions"),
    "permit_unconventional_http_method": (REQUESTS, "test_methods"),
    "casefold_http_method": (REQUESTS, "test_methods"),
    **dict.fromkeys(
        (
            "protocol",
            "http_protocols",
            "http2_cleartext",
            "permit_obsolete_folding",
            "permit_unconventional_http_version",
            "strip_header_spaces",
        ),
        (RULES, "test_what_cannot_be_obeyed_is_refused_by_name"),
    ),
}
"""The test of each setting that is tried by itself."""


def test_every_setting_of_the_table_has_a_test() -> None:
    tls = {"certfile", "keyfile", "ca_certs", "cert_reqs", "ciphers", "ssl_context"}
    tested = [*TOGETHER, *tls, *MEANINGLESS, *ALONE]
    assert sorted(tested) == sorted(TABLE)
    for file, name in set(ALONE.values()):
        assert f"\ndef {name}(" in (DOCS.parent / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("name", sorted(TOGETHER))
def test_a_setting_beside_others_is_obeyed(name: str, evidence: Evidence) -> None:
    assert TABLE[name] == "obeyed"
    TOGETHER[name](evidence)
