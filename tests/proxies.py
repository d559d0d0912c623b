"""nginx with a configuration of the test's own, or of the documentation."""

from __future__ import annotations

import re
from textwrap import indent

import pytest

from tests.processes import Server, Servers, accepts, nginx_program, unused_port

_CONFIG = """\
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{top}
    server {{
        listen 127.0.0.1:{port};
{inner}
    }}
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
    proxy_read_timeout 3600s;
}
"""


def nginx_in_front(servers: Servers, upstream: int, text: str = AS_DOCUMENTED) -> Server:
    """Start nginx.

    :param upstream: port of the application, in place of the 8000 of ``text``.
    :param text: blocks of ``http``, then those of ``server``, from the first ``location`` on.
    """
    program = nginx_program()
    if program is None:
        pytest.skip("no nginx: apt-get install nginx-light")
    port = unused_port()
    prefix = servers.folder / f"nginx-{port}"
    (prefix / "logs").mkdir(parents=True)
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    start = re.search(r"^location", text, re.MULTILINE)
    assert start is not None
    top, inner = text[: start.start()], text[start.start() :]
    config = prefix / "nginx.conf"
    config.write_text(
        _CONFIG.format(top=indent(top, " " * 4), inner=indent(inner, " " * 8), port=port)
    )
    server = servers.start([program, "-p", prefix, "-c", config, "-e", prefix / "error.log"])
    server.port = port
    server.wait_for(lambda: accepts(port), "it accepted connections")
    return server
