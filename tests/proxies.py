"""nginx, HAProxy and Caddy with a configuration of the test's own, or of the documentation."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from textwrap import indent

import psutil
import pytest

from tests.processes import (
    PATIENCE,
    Certificate,
    Server,
    Servers,
    accepts,
    haproxy_program,
    nginx_program,
    unused_port,
)

_CONFIG = """\
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{http}
}}
"""

_SERVER = """\
{top}
server {{
    listen 127.0.0.1:{port}{listen};
{inner}
}}
"""


AS_DOCUMENTED = """\
map $http_upgrade $connection_upgrade { default upgrade; '' close; }
location / {
    proxy_pass http://127.0.0.1:8000;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
}
"""


def nginx_in_front(
    servers: Servers,
    upstream: int,
    text: str = AS_DOCUMENTED,
    certificate: Certificate | None = None,
    connections: int = 256,
) -> Server:
    """Start nginx.

    :param upstream: port of the application, in place of the 8000 of ``text``.
    :param text: blocks of ``http``, then those of ``server``, from the first ``location`` on.
    :param certificate: it speaks TLS and HTTP/2 with it.
    :param connections: that it can have, two for each client.
    """
    port = unused_port()
    start = re.search(r"^location", text, re.MULTILINE)
    assert start is not None
    top, inner = text[: start.start()], text[start.start() :]
    listen = ""
    if certificate is not None:
        listen = " ssl http2"  # a directive of its own from 1.25.1 on, which still takes this one
        top += f"ssl_certificate {certificate.certfile};\n"
        top += f"ssl_certificate_key {certificate.keyfile};\n"
    text = _SERVER.format(top=top, inner=indent(inner, " " * 4), port=port, listen=listen)
    secure = certificate is not None
    return _start_nginx(servers, upstream, text, port, secure=secure, connections=connections)


def nginx_with_site(servers: Servers, upstream: int, text: str) -> Server:
    """Start nginx with a file of ``conf.d``.

    :param upstream: port of the application, in place of the 8000 of ``text``.
    :param text: blocks of ``http``, with one ``listen``, whose port is replaced.
    """
    port = unused_port()
    text, count = re.subn(r"listen \d+;", f"listen 127.0.0.1:{port};", text)
    assert count == 1
    return _start_nginx(servers, upstream, text, port, secure=False)


def _start_nginx(
    servers: Servers, upstream: int, text: str, port: int, *, secure: bool, connections: int = 256
) -> Server:
    program = nginx_program()
    if program is None:
        pytest.skip("no nginx: apt-get install nginx-light")
    prefix = servers.folder / f"nginx-{port}"
    (prefix / "logs").mkdir(parents=True)
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    config = prefix / "nginx.conf"
    config.write_text(_CONFIG.format(http=indent(text, " " * 4), connections=connections))
    server = servers.start(
        [program, "-p", prefix, "-c", config, "-e", prefix / "error.log"], secure=secure
    )
    server.port = port
    server.wait_for(lambda: accepts(port), "it accepted connections")
    return server


_HAPROXY = """\
global
    maxconn {connections}
"""


def haproxy_in_front(
    servers: Servers,
    upstream: int,
    text: str,
    certificate: Certificate | None = None,
    connections: int = 200,
) -> Server:
    """Start HAProxy.

    :param upstream: port of the application, in place of the 8000 of ``text``.
    :param text: its sections; the one ``bind`` is replaced.
    :param certificate: it speaks TLS and HTTP/2 with it.
    :param connections: of clients, at the most.
    """
    program = haproxy_program()
    if program is None:
        pytest.skip("no HAProxy: apt-get install haproxy")
    port = unused_port()
    folder = servers.folder / f"haproxy-{port}"
    folder.mkdir()
    bind = f"bind 127.0.0.1:{port}"
    if certificate is not None:
        both = folder / "both.pem"
        both.write_bytes(certificate.certfile.read_bytes() + certificate.keyfile.read_bytes())
        bind += f" ssl crt {both} alpn h2,http/1.1"
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    text, count = re.subn(r"bind .*", bind, text)
    assert count == 1
    config = folder / "haproxy.cfg"
    config.write_text(_HAPROXY.format(connections=connections) + text)
    server = servers.start([program, "-W", "-f", config], secure=certificate is not None)
    server.port = port
    server.wait_for(lambda: accepts(port), "it accepted connections")
    return server


def caddy_in_front(
    servers: Servers, upstream: int, text: str, certificate: Certificate | None = None
) -> Server:
    """Start Caddy.

    :param upstream: port of the application, in place of the 8000 of ``text``.
    :param text: the block of ``example.com``.
    :param certificate: it speaks TLS and HTTP/2 with it.
    """
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("no Caddy: apt-get install caddy")
    port = unused_port()
    folder = servers.folder / f"caddy-{port}"
    folder.mkdir()
    site = f"http://127.0.0.1:{port} {{"
    if certificate is not None:
        site = f"https://127.0.0.1:{port} {{\n    tls {certificate.certfile} {certificate.keyfile}"
    config = folder / "Caddyfile"
    options = [
        f"admin 127.0.0.1:{unused_port()}",
        "auto_https off",
        f"storage file_system {folder}",
    ]
    config.write_text(
        "\n    ".join(["{", *options])
        + "\n}\n"
        + text.replace("example.com {", site).replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    )
    server = servers.start(
        [program, "run", "--adapter", "caddyfile", "--config", config],
        environ={"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        secure=certificate is not None,
    )
    server.port = port
    server.wait_for(lambda: accepts(port), "it accepted connections")
    return server


def reload_nginx(proxy: Server) -> None:
    """Have it read its configuration again, as ``systemctl reload`` does."""
    _reload_by(proxy, signal.SIGHUP)


def reload_haproxy(proxy: Server) -> None:
    """Have it read its configuration again, as ``systemctl reload`` does."""
    _reload_by(proxy, signal.SIGUSR2)


def _reload_by(proxy: Server, signum: int) -> None:
    """Signal the main process, and wait for another one that serves."""
    main = psutil.Process(proxy.process.pid)
    old = {child.pid for child in main.children()}
    proxy.process.send_signal(signum)
    proxy.wait_for(
        lambda: {child.pid for child in main.children()} - old and accepts(proxy.port),
        "it served with its new configuration",
    )


def reload_caddy(proxy: Server) -> None:
    """Have it read its configuration again, as ``systemctl reload`` does."""
    args = proxy.process.args
    assert isinstance(args, list)
    command = [args[0], "reload", "--force", *args[2:]]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
