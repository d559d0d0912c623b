"""gunicorn's settings about requests, as they are read at the start of a worker."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config

from flask_sockets2.servers.request_head import RequestError
from flask_sockets2.servers.rules import RequestRules
from flask_sockets2.wire.handshake import is_mount_point


def rules(**settings: Any) -> RequestRules:
    config = Config()
    for name, value in settings.items():
        config.set(name, value)
    return RequestRules(config)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("protocol", "uwsgi", "reads HTTP/1.1 only"),
        ("http_protocols", "h2,h1", "reads HTTP/1.1 only"),
        ("http_protocols", "h2", "reads HTTP/1.1 only"),
        ("http2_cleartext", "upgrade", "reads HTTP/1.1 only"),
        ("permit_obsolete_folding", True, "in two ways"),
        ("permit_unconventional_http_version", True, "in two ways"),
        ("strip_header_spaces", True, "in two ways"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(setting: str, value: Any, reason: str) -> None:
    if setting not in Config().settings:
        with pytest.raises(AttributeError):
            rules(**{setting: value})
        return
    expected = f"the setting {setting} is .* does not support: .*{reason}.*use gunicorn -k gevent"
    with pytest.raises(ValueError, match=expected):
        rules(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "limits"),
    [
        ("limit_request_line", 4094, (4094, 100, 8190)),
        ("limit_request_line", 0, (8190, 100, 8190)),
        ("limit_request_line", 9000, (8190, 100, 8190)),
        ("limit_request_fields", 7, (4094, 7, 8190)),
        ("limit_request_fields", 0, (4094, 32768, 8190)),
        ("limit_request_fields", 40000, (4094, 32768, 8190)),
        ("limit_request_field_size", 20000, (4094, 100, 20000)),
        ("limit_request_field_size", 0, (4094, 100, 8190)),
    ],
)
def test_limits_are_gunicorns(setting: str, value: int, limits: tuple[int, int, int]) -> None:
    got = rules(**{setting: value})
    assert (got.max_request_line, got.max_header_fields, got.max_header_size) == limits


@pytest.mark.parametrize(
    ("allowed", "peer", "trusted"),
    [
        ("127.0.0.1,::1", ("127.0.0.1", 1), True),
        ("127.0.0.1,::1", ("::1", 1, 0, 0), True),
        ("127.0.0.1,::1", ("127.0.0.2", 1), False),
        ("10.0.0.0/8", ("10.1.2.3", 1), True),
        ("10.0.0.0/8", ("11.1.2.3", 1), False),
        ("*", ("192.0.2.1", 1), True),
        ("", ("127.0.0.1", 1), False),
        ("127.0.0.1", ("no address", 1), False),
        ("127.0.0.1", "", True),  # a Unix socket
        ("127.0.0.1", b"", True),
    ],
)
def test_peers_are_trusted_by_address(allowed: str, peer: Any, trusted: bool) -> None:
    forwarded = rules(forwarded_allow_ips=allowed, proxy_allow_ips="192.0.2.9")
    assert forwarded.trusts(peer) is trusted
    proxied = rules(proxy_allow_ips=allowed, forwarded_allow_ips="192.0.2.9")
    assert proxied.may_speak_proxy_protocol(peer) is trusted


UNCLEAR = [("Host", "a"), ("X_A", "1"), ("Script_Name", "/app"), ("X-A", "2")]


@pytest.mark.parametrize(
    ("header_map", "headers", "trusted", "kept"),
    [
        ("drop", "SCRIPT_NAME", False, {"Host", "X-A"}),
        ("drop", "SCRIPT_NAME", True, {"Host", "X-A", "Script_Name"}),
        ("drop", "X_A", True, {"Host", "X-A", "X_A"}),
        ("drop", "*", True, {"Host", "X-A", "X_A", "Script_Name"}),
        ("drop", "*", False, {"Host", "X-A"}),
        ("refuse", "*", True, {"Host", "X-A", "X_A", "Script_Name"}),
        ("refuse", "SCRIPT_NAME", True, None),
        ("refuse", "*", False, None),
        ("dangerous", "X_A", False, {"Host", "X-A", "X_A"}),  # gunicorn believes Script_Name, too
        ("dangerous", "SCRIPT_NAME", True, {"Host", "X-A", "X_A", "Script_Name"}),
    ],
)
def test_names_with_underscores_come_through_by_permission(
    header_map: str, headers: str, trusted: bool, kept: set[str] | None
) -> None:
    obeyed = rules(header_map=header_map, forwarder_headers=headers)
    if kept is None:
        with pytest.raises(RequestError, match="underscore"):
            obeyed.admit(UNCLEAR, trusted=trusted)
    else:
        assert {name for name, _ in obeyed.admit(UNCLEAR, trusted=trusted)} == kept


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ([], "http"),
        ([("X-Forwarded-Proto", "https")], "https"),
        ([("x-forwarded-proto", "https")], "https"),
        ([("X-Forwarded-Proto", "wss")], "https"),
        ([("X-Forwarded-Proto", "ws")], "http"),
        ([("X-Forwarded-Proto", "HTTPS")], "http"),
        ([("X-Forwarded-Proto", "https,http")], "http"),
        ([("X-Forwarded-Proto", "javascript")], "http"),
        ([("X-Forwarded-Ssl", "on")], "https"),
        ([("X-Forwarded-Ssl", "wss")], "http"),
        ([("X-Forwarded-Protocol", "ssl"), ("X-Forwarded-Proto", "https")], "https"),
    ],
)
def test_the_scheme_is_https_or_http(fields: list[tuple[str, str]], scheme: str) -> None:
    assert rules().scheme(fields) == scheme


def test_a_trusted_peer_may_say_that_https_is_http() -> None:
    tls = rules(certfile="cert.pem")
    assert tls.scheme([("X-Forwarded-Proto", "http")]) == "http"
    assert tls.scheme([]) == "https"


def test_headers_that_disagree_on_the_scheme_are_refused() -> None:
    fields = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "off")]
    with pytest.raises(RequestError, match="secure_scheme_headers"):
        rules().scheme(fields)
    assert rules(secure_scheme_headers={"X-A": "yes"}).scheme([*fields, ("X-A", "yes")]) == (
        "https"
    )


@pytest.mark.parametrize("method", ["get", "Get", "GO", "A" * 21, "A#B"])
def test_an_unusual_method_is_refused_unless_permitted(method: str) -> None:
    with pytest.raises(RequestError, match="permit_unconventional_http_method"):
        rules().method(method)
    assert rules(permit_unconventional_http_method=True).method(method) == method
    both = rules(permit_unconventional_http_method=True, casefold_http_method=True)
    assert both.method(method) == method.upper()


@pytest.mark.parametrize(
    "path",
    [
        *("//evil.com", "/\\evil.com", "\\\\evil.com", "http://evil.com", "///", "//"),
        *("app", " /app", "/a\tb", "\t/a", "/\t/evil.com", "/a\x7f"),
    ],
)
def test_an_address_is_no_mount_point(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_mount_point(path)
    with pytest.raises(RequestError, match="SCRIPT_NAME"):
        rules().split([("SCRIPT_NAME", path)], f"{path}/page")
    monkeypatch.setenv("SCRIPT_NAME", path)
    with pytest.raises(ValueError, match="SCRIPT_NAME must be a path such as /app"):
        rules().read_environment()


@pytest.mark.parametrize(
    ("script_name", "path", "expected"),
    [
        ("", "/page", ("", "/page")),
        ("/", "/page", ("", "/page")),
        ("/app", "/app/page", ("/app", "/page")),
        ("/app/", "/app/page", ("/app", "/page")),
        ("/app", "/app", ("/app", "")),
        ("/a/b", "/a/b/c%2fd", ("/a/b", "/c%2fd")),
        ("/app", "/app//evil.com", ("/app", "//evil.com")),
        ("/a b", "/a b/page", ("/a b", "/page")),
        ("/app", "/page", None),
        ("/app", "/application", None),
        ("/app", "*", None),
        ("/app", "/app*admin", None),
        ("/", "*", ("", "*")),
        ("", "*", ("", "*")),
    ],
)
def test_the_path_is_split_behind_the_mount_point(
    script_name: str,
    path: str,
    expected: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCRIPT_NAME", script_name)
    mounted = rules()
    mounted.read_environment()
    if expected is None:
        with pytest.raises(RequestError) as raised:
            mounted.split([], path)
        assert raised.value.status == 500
    else:
        assert mounted.split([], path) == expected
        assert rules().split([("SCRIPT_NAME", script_name)], path) == expected


def test_a_header_counts_before_the_environment_and_contradictions_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCRIPT_NAME", "/app")
    mounted = rules()
    mounted.read_environment()
    assert mounted.split([("Script_Name", "/b")], "/b/page") == ("/b", "/page")
    with pytest.raises(RequestError, match="SCRIPT_NAME"):
        mounted.split([("SCRIPT_NAME", "/b"), ("SCRIPT_NAME", "/b/c")], "/b/c/page")
