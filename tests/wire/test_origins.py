"""Which origins a list allows, and what is of the same one."""

from __future__ import annotations

import pytest

from flask_sockets2.wire.origins import (
    can_be_rebound,
    origin_of_url,
    parse_hosts,
    parse_origins,
    same_origin,
)

CHROME = "fakjpmebfmpdbhpnddiokemempckoejk"
UUID = "0f9a1c5e-7a3b-4d55-9f0e-3a1b2c4d5e6f"


def header(text: str) -> str:
    """What WSGI makes of a header field in UTF-8 (PEP 3333)."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://example.com", "example.com", True),
        ("https://example.com", "example.com", True),
        ("https://example.com", "example.com:443", True),
        ("https://example.com:443", "example.com", True),
        ("http://example.com", "example.com:80", True),
        ("http://example.com:80", "example.com", True),
        ("http://example.com:5000", "example.com:5000", True),
        ("HTTP://Example.COM", "eXample.com", True),
        ("http://[::1]", "[::1]", True),
        ("http://[::1]:80", "[::1]", True),
        ("http://[::1]:5000", "[::1]:5000", True),
        ("http://[2001:DB8::1]", "[2001:db8::1]", True),
        ("http://my_app:5000", "my_app:5000", True),
        ("wss://example.com", "example.com", True),  # as some clients that are no browsers say
        ("ws://example.com:5000", "example.com:5000", True),
        ("wss://example.com:443", "example.com", True),
        ("wss://evil.example", "example.com", False),
        ("ws://example.com", "example.com:443", False),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example", True),
        (header("https://bücher.example"), "xn--bcher-kva.example", True),
        ("https://xn--bcher-kva.example", header("BÜCHER.example"), True),
        (header("https://bu\u0308cher.example"), "xn--bcher-kva.example", True),  # ü of two
        (header("https://bücher.example"), "bucher.example", False),
        (header("https://faß.example"), "fass.example", False),
        ("https://b\xfccher.example", "b\xfccher.example", True),  # no UTF-8, and the same
        ("capacitor://localhost", "localhost", False),
        ("chrome-extension://example.com", "example.com", False),
        ("https://example.com:99999", "example.com", False),
        ("http://example.com", "example.com, example.com", False),
        ("http://example.com", "", False),
        ("http://example.com", "example.com:", True),  # RFC 3986 §3.2.3
        ("http://example.com", "example.com:443", False),
        ("https://example.com", "example.com:80", False),
        ("http://example.com:5001", "example.com:5000", False),
        ("http://example.com", "example.com:5000", False),
        ("http://[::1]:5001", "[::1]:5000", False),
        ("http://[::1]", "[::2]", False),
        ("http://www.example.com", "example.com", False),
        ("http://example.com", "www.example.com", False),
        ("http://example.com.evil.example", "example.com", False),
        ("http://evil-example.com", "example.com", False),
        ("http://example.com@evil.example", "example.com", False),
        ("http://evil.example/example.com", "example.com", False),
        ("null", "example.com", False),
        ("null", "null", False),
        ("", "example.com", False),
        ("example.com", "example.com", False),
        ("file://example.com", "example.com", False),
        ("http://[::1", "[::1", False),
        ("http://", "", False),
        ("http://example.com/", "example.com", False),
        ("http://exa\tmple.com", "example.com", False),
        ("\r\nhttp://example.com", "example.com", False),
    ],
)
def test_the_same_host_and_port_is_the_same_origin(origin: str, host: str, expected: bool) -> None:
    assert same_origin(origin, host) is expected


@pytest.mark.parametrize(
    ("origin", "secure", "expected"),
    [
        ("https://example.com", True, True),
        ("http://example.com", True, False),  # whoever is on its way can write that page
        ("http://example.com", False, True),
        ("ws://example.com", True, False),
        ("wss://example.com", True, True),
        ("https://example.com", False, True),  # a proxy that ends TLS without telling
    ],
)
def test_a_page_of_plain_http_is_another_origin_than_https(
    origin: str, secure: bool, expected: bool
) -> None:
    assert same_origin(origin, "example.com", secure=secure) is expected


@pytest.mark.parametrize(
    ("origin", "allowed", "expected"),
    [
        ("https://example.com", ["https://example.com"], True),
        ("https://example.com", ["https://example.com/"], True),
        ("HTTPS://EXAMPLE.com", ["https://Example.COM"], True),
        ("https://b.example", ["https://a.example", "https://b.example"], True),
        ("https://example.com:8443", ["https://example.com:8443"], True),
        ("https://example.com", ["https://example.com:443"], True),
        ("http://example.com", ["http://example.com:80"], True),
        ("https://example.com", ["https://example.com:80"], False),
        ("https://a.example.com", ["https://*.example.com"], True),
        ("https://a.b.example.com", ["https://*.example.com"], True),
        ("https://A.Example.com", ["https://*.example.COM"], True),
        ("https://a.example.com:8443", ["https://*.example.com:8443"], True),
        ("https://a.example.com", ["https://*.example.com/"], True),
        ("https://a.example.com", ["https://*.example.com:443"], True),
        ("https://a.example.com", ["https://*.example.com:443/"], True),
        ("http://a.example.com", ["http://*.example.com:80"], True),
        ("https://a.example.com", ["https://*.example.com:80"], False),
        ("https://anything.example", ["*"], True),
        ("null", ["*"], True),
        ("null", ["null"], True),
        ("http://[::1]:5000", ["http://[::1]:5000"], True),
        ("http://localhost", ["http://localhost:*"], True),
        ("http://localhost:5173", ["http://localhost:*"], True),
        ("http://[::1]:5173", ["http://[::1]:*"], True),
        ("https://pr-7.example.com:8443", ["https://*.example.com:*"], True),
        ("http://localhost:5173", ["http://localhost:3000"], False),
        ("https://localhost:5173", ["http://localhost:*"], False),
        ("http://localhost.evil.example:5173", ["http://localhost:*"], False),
        ("http://localhost:", ["http://localhost:*"], False),
        ("http://localhost:*", ["http://localhost:*"], False),
        ("capacitor://localhost", ["capacitor://localhost"], True),
        ("ionic://localhost", ["ionic://localhost"], True),
        ("tauri://localhost", ["tauri://localhost"], True),
        ("http://tauri.localhost", ["http://tauri.localhost"], True),
        ("app://.", ["app://."], True),
        ("app://obsidian.md", ["app://obsidian.md"], True),
        ("http://localhost", ["capacitor://localhost"], False),
        ("capacitor://evil", ["capacitor://localhost"], False),
        (f"chrome-extension://{CHROME}", [f"chrome-extension://{CHROME}"], True),
        (f"chrome-extension://{CHROME}", [f"chrome-extension://{CHROME}/"], True),
        (f"chrome-extension://{CHROME}", ["chrome-extension://*"], True),
        (f"chrome-extension://{CHROME}", [f"chrome-extension://{CHROME[::-1]}"], False),
        (f"moz-extension://{UUID}", ["moz-extension://*"], True),
        (f"safari-web-extension://{UUID.upper()}", [f"safari-web-extension://{UUID}"], True),
        (f"moz-extension://{UUID}", ["chrome-extension://*"], False),
        (f"vscode-webview://{UUID}", ["vscode-webview://*"], True),
        ("file://", ["file://"], True),
        ("file://", ["file:///"], True),
        ("null", ["file://"], False),  # a frame of any site says so, too
        ("file://", ["null"], False),
        ("file://evil", ["file://"], False),
        ("https://example.com", ["wss://example.com"], True),
        ("wss://example.com", ["https://example.com"], True),
        ("http://example.com", ["wss://example.com"], False),
        ("https://xn--bcher-kva.example", ["https://bücher.example"], True),
        ("https://xn--bcher-kva.example", ["https://BÜCHER.example"], True),
        ("https://www.xn--bcher-kva.example", ["https://*.bücher.example"], True),
        (header("https://bücher.example"), ["https://xn--bcher-kva.example"], True),
        ("https://xn--ls8h.example", ["https://💩.example"], True),
        ("https://bucher.example", ["https://bücher.example"], False),
        ("http://example.com", ["https://example.com"], False),
        ("https://example.com:8443", ["https://example.com"], False),
        ("https://example.com", [], False),
        ("null", ["https://example.com"], False),
        ("", ["https://example.com"], False),
        ("https://example.com", ["https://*.example.com"], False),
        ("https://evil-example.com", ["https://*.example.com"], False),
        ("https://evil.example", ["https://*.example.com"], False),
        ("https://example.com.evil.example", ["https://*.example.com"], False),
        ("http://a.example.com", ["https://*.example.com"], False),
        ("https://a.example.com:8443", ["https://*.example.com"], False),
        ("https://example.com.", ["https://example.com"], False),
    ],
)
def test_listed_origins_are_allowed_and_no_other(
    origin: str, allowed: list[str], expected: bool
) -> None:
    assert parse_origins(tuple(allowed)).include(origin) is expected


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("example.com", "is no origin; expected 'https://example.com'"),
        ("localhost:5173", "is no origin"),
        ("*.example.com", "is no origin"),
        ("https://", "is no origin"),
        ("https://example.com/page", "is no origin"),
        ("https://example.com?", "is no origin"),
        ("https://user@example.com", "is no origin"),
        ("https://exa mple.com", "is no origin"),
        ("https://a.*.example.com", "is no origin"),
        ("https://app-*.example.com", "is no origin"),
        ("https://*example.com", "is no origin"),
        ("https://*.", "is no origin"),
        ("https://*.*", "is no origin"),
        ("https://[::1", "is no origin"),
        ("https://example.com:", "is no origin"),
        ("https://example.com:0", "expected a port from 1 to 65535, or '*'"),
        ("https://example.com:65536", "expected a port from 1 to 65535, or '*'"),
        ("https://example.com:https", "is no origin"),
        ("https://*", "expected '*' for the pages of every site"),
        ("http://*:5000", "expected '*' for the pages of every site"),
        ("wss://*", "expected '*' for the pages of every site"),
        ("htps://example.com", "did you mean 'https://'?"),
        ("htpp://example.com", "did you mean 'http://'?"),
        ("httpss://example.com", "did you mean 'https://'?"),
        ("capacitor://", "is no origin"),
        ("capacitor:localhost", "is no origin"),
        ("chrome-extension:*", "is no origin"),
        ("chrome-extension://*/popup.html", "is no origin"),
        ("file:///home/ann/page.html", "is no origin"),
        ("file://localhost", "is no origin"),
        ("ftp://example.com", "is no origin"),
        ("data://example.com", "is no origin"),
        ("javascript://example.com", "is no origin"),
        ("", "is no origin"),
        ("same_origin", "'null', 'same-origin' or '*'"),
        ("'self'", "'null', 'same-origin' or '*'"),
        ("same-origin://", "is no origin"),
        ("https://faß.example", "expected it in ASCII"),  # two names: IDNA 2003 and 2008 differ
        ("https://" + "ü" * 70 + ".example", "expected it in ASCII"),
    ],
)
def test_an_entry_that_can_match_no_page_or_every_page_is_refused(entry: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse_origins(("https://example.com", entry))
    assert repr(entry) in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "every", "opaque"),
    [
        (("*",), True, False),
        (("https://a.example", "*"), True, False),
        (("null",), False, True),
        (("NULL", "file://"), False, True),
        (("https://*.example.com", "moz-extension://*"), False, False),
        ((), False, False),
    ],
)
def test_a_list_says_whether_each_site_can_have_such_a_page(
    entries: tuple[str, ...], every: bool, opaque: bool
) -> None:
    allowed = parse_origins(entries)
    assert (allowed.every, allowed.opaque) == (every, opaque)


def test_a_list_says_whether_the_same_origin_is_in_it() -> None:
    assert parse_origins(("https://example.com", "Same-Origin")).same
    assert not parse_origins(("https://same-origin", "*")).same
    assert not parse_origins(("same-origin",)).include("same-origin")


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://example.com/page?query", "https://example.com"),
        ("http://example.com:5000", "http://example.com:5000"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
        ("HTTP://Example.com/", "HTTP://Example.com"),
        ("https://user@example.com/", "https://user@example.com"),  # no origin, and none of ours
        ("https://example.com\\@evil.example/", "https://example.com"),  # as browsers read it
        ("https://example.com#evil.example", "https://example.com"),
        ("about:blank", ""),
        ("/page", ""),
        ("", ""),
    ],
)
def test_the_origin_of_a_referer(url: str, origin: str) -> None:
    assert origin_of_url(url) == origin


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("example.com", ["example.com"], True),
        ("Example.com:8443", ["example.com"], True),
        ("example.com:", ["example.com"], True),
        ("example.com", ["EXAMPLE.com:5000"], True),
        ("www.example.com", [".example.com"], True),
        ("example.com", [".example.com"], True),
        ("[::1]:5000", ["[::1]"], True),
        ("127.0.0.1:5000", ["127.0.0.1"], True),
        ("xn--bcher-kva.example", ["bücher.example"], True),
        (header("bücher.example"), ["xn--bcher-kva.example"], True),
        ("www.example.com", ["example.com"], False),
        ("evil-example.com", [".example.com"], False),
        ("example.com.evil.example", [".example.com"], False),
        ("example.com.", ["example.com"], False),
        ("example.com@evil.example", ["example.com"], False),
        ("", ["example.com", ""], False),
        ("evil.example", [".", "", "a b"], False),
    ],
)
def test_known_hosts_are_known_with_any_port(host: str, names: list[str], expected: bool) -> None:
    assert parse_hosts(tuple(names)).include(host) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("evil.example", True),
        ("evil.example:5000", True),
        ("evil.example.", True),
        ("localhost.evil.example", True),
        ("127.0.0.1.evil.example", True),
        ("1.evil", True),
        ("a b", True),
        ("", True),
        ("127.0.0.1:5000", False),
        ("192.168.1.5", False),
        ("0x7f.1", False),
        ("[::1]:5000", False),
        ("localhost:5000", False),
        ("tauri.localhost", False),
        ("web:8000", False),
        ("my_app", False),
    ],
)
def test_a_stranger_binds_no_address_and_no_name_of_a_local_network(
    host: str, expected: bool
) -> None:
    assert can_be_rebound(host) is expected
