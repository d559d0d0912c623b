"""The findings of ``flask sockets doctor``, with a remedy for each."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["ANSWERS", "CERTIFICATE_ERRORS", "FINDINGS", "Finding", "closing", "proxy_remedy"]


class Finding(Exception):
    """The doctor has found the fault.

    :param key: key of :data:`FINDINGS`.
    :param facts: values for the texts of the finding.
    """

    def __init__(self, key: str, **facts: Any) -> None:
        super().__init__(key)
        self.key = key
        self.facts = facts

    def explain(self, **facts: Any) -> tuple[str, str]:
        """Return the fault and its remedy as texts.

        :param facts: further values for the texts.
        """
        what, remedy = FINDINGS[self.key]
        facts.update(self.facts)
        return what.format(**facts), remedy.format(**facts)


def proxy_remedy(sender: str) -> str:
    """Return the remedy for a proxy.

    :param sender: the proxy's header fields ``Server`` and ``Via``.
    """
    return next(
        (remedy for name, remedy in _PROXIES if re.search(name, sender, re.IGNORECASE)),
        _ANY_PROXY,
    )


def closing(code: int) -> tuple[str, str]:
    """Return the meaning of a close code, and a remedy."""
    return _CODES.get(code, _OTHER_CODE)


_NGINX = """\
in nginx, into the block "location" of this URL:
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";"""

_PROXIES = (
    # name in the Server or Via header field, remedy
    ("nginx|openresty", _NGINX),
    (
        "apache",
        'in Apache 2.4.47 or newer: ProxyPass "/" "http://127.0.0.1:8000/" upgrade=websocket',
    ),
    ("cloudflare", "in Cloudflare's dashboard, under Network: switch WebSockets on"),
    ("cloudfront", "in CloudFront: use the origin request policy AllViewer"),
)
_ANY_PROXY = f"in another proxy, look for its WebSocket setting;\n{_NGINX}"

FINDINGS = {
    # the fault, and the remedy. Both are formatted with the facts.
    "no name": (
        "The name {host} cannot be resolved ({error}).",
        "Check the spelling, and the DNS record of that name.",
    ),
    "refused": (
        "Nothing listens on port {port} of {host}: the connection is refused.",
        "Start the server, check its port, and that it is bound to an address that can be reached "
        "from here (gunicorn -b 0.0.0.0:8000 instead of 127.0.0.1).",
    ),
    "unreachable": (
        "{host} cannot be reached on port {port} ({error}).",
        "A firewall or a security group may drop the packets; check also the address.",
    ),
    "tls on a plain port": (
        "Port {port} of {host} speaks plain HTTP, not TLS.",
        "Use {plain} for a test; a page served by https needs a proxy that ends TLS.",
    ),
    "certificate expired": (
        "The certificate of {host} has expired.",
        "Renew the certificate and reload the server. Until then browsers refuse the connection.",
    ),
    "certificate self-signed": (
        "The certificate of {host} is self-signed, or its authority is not known here ({error}).",
        "Get a certificate from an authority that browsers know, such as Let's Encrypt, or trust "
        "this one on every client. To test the server behind it: --insecure",
    ),
    "certificate chain": (
        "The certificate of {host} does not lead to an authority that is known here ({error}).",
        "Serve the whole chain (the file is often called fullchain.pem), or trust the authority. "
        "To test the server behind it: --insecure",
    ),
    "certificate for another host": (
        "The certificate was not issued for {host} ({error}).",
        "Use the name in the certificate, or get a certificate for this name.",
    ),
    "certificate": (
        "The certificate of {host} is not accepted ({error}).",
        "Check its dates and its chain. To test the server behind it: --insecure",
    ),
    "tls": (
        "TLS with {host} failed ({error}).",
        "Check that port {port} is the TLS port and that server and client share a TLS version.",
    ),
    "silent": (
        "The connection is open, but no answer came in {timeout:g} s.",
        "All workers may be busy: a gunicorn sync worker serves one connection at a time; use "
        "gunicorn -k flask_sockets2.worker. Or a proxy waits for a server behind it.",
    ),
    "dropped": (
        "The server closed the connection without an answer ({error}).",
        "Read the server's log. If port {port} is a TLS port, use {secure}",
    ),
    "needs tls": (
        "Port {port} of {host} speaks TLS, but the URL does not.",
        "Use {secure}",
    ),
    "not http": (
        "The server on port {port} does not speak HTTP; its answer begins with {start}",
        "Check the port, and that no proxy protocol or HTTP/2 without TLS is in the way.",
    ),
    "version": (
        "The server does not accept version 13 of the protocol, which every browser uses: {answer}",
        "A proxy in between changes Sec-WebSocket-Version, or the server is very old.",
    ),
    "connection header": (
        "A proxy in between removes the header field 'Connection: Upgrade': {answer}",
        "Have the proxy forward the header field: {proxy}",
    ),
    "upgrade header": (
        "A proxy in between removes the header fields 'Upgrade' and 'Connection', so that the "
        "application saw an ordinary request: {answer}",
        "Have the proxy forward both header fields: {proxy}",
    ),
    "http/1.0": (
        "A proxy in between speaks HTTP/1.0 to the application; a WebSocket needs 1.1: {answer}",
        "Set the version, in nginx with proxy_http_version 1.1; {proxy}",
    ),
    "page only": (
        "The application serves a page at this URL, no WebSocket: {answer}",
        "Check the path. 'flask sockets routes' lists the WebSocket rules.",
    ),
    "bad request": (
        "The request was refused as a bad request: {answer}",
        "The handler may call abort(400): check the path and the query string. Or the "
        "application has no WebSocket rule for this path ('flask sockets routes'). Or a proxy "
        "changes the header fields: {proxy}",
    ),
    "login": (
        "The server asks for a login: {answer}",
        "Pass credentials: --header 'Cookie: session=...' or --header 'Authorization: ...'. "
        "Browsers send cookies with a WebSocket; a page cannot set Authorization there.",
    ),
    "own origin": (
        "The application refuses pages of its own address, {origin}: {answer}",
        "A proxy in between changes the Host header field. Have the proxy forward Host (in nginx: "
        "proxy_set_header Host $http_host;), or have it send X-Forwarded-Host and wrap the "
        "application: app.wsgi_app = ProxyFix(app.wsgi_app, x_proto=1, x_host=1). Or add the "
        "origin to SOCKETS_ALLOWED_ORIGINS.",
    ),
    "other origin": (
        "The application refuses pages of the origin {origin}: {answer}",
        "If these pages may connect, add the origin: app.config['SOCKETS_ALLOWED_ORIGINS'] = "
        "['{origin}']. If {origin} is the application's own public address, use Werkzeug's "
        "ProxyFix.",
    ),
    "forbidden": (
        "The request is refused: {answer}",
        "The application, a firewall or an access rule of the proxy refuses. If a login is needed, "
        "pass its cookie: --header 'Cookie: ...'. See also the server's log.",
    ),
    "not found by nginx": (
        "nginx has no such path and did not ask the application: {answer}",
        'Add a block "location" with proxy_pass for this path; {proxy}',
    ),
    "not found": (
        "There is no such path: {answer}",
        "Check the path, also a slash at its end; 'flask sockets routes' lists the rules.",
    ),
    "no socket": (
        "The application runs on a server that cannot serve WebSockets: {answer}",
        "Start it with gunicorn -k flask_sockets2.worker app:app",
    ),
    "bad gateway": (
        "The proxy got no valid answer from the application behind it: {answer}",
        "Check that the application runs and listens at the address that the proxy uses (in nginx: "
        "proxy_pass), and read both logs.",
    ),
    "full": (
        "The application is full: {answer}",
        "SOCKETS_MAX_CONNECTIONS is reached: raise it, or add workers.",
    ),
    "crowded": (
        "Too many clients connect at the same time: {answer}",
        "SOCKETS_MAX_HANDSHAKE_RATE is reached: try again in a moment, raise it, or add workers.",
    ),
    "limited": (
        "This client has reached a rate limit or a quota: {answer}",
        "The application (docs/limits.rst) or a proxy limits connections for each address or user. "
        "Without ProxyFix all clients behind a proxy have one address.",
    ),
    "stopping": (
        "The server is just stopping or restarting: {answer}",
        "Try again in a moment.",
    ),
    "no broker": (
        "The application runs, but cannot reach its broker: {answer}",
        "Check that the Redis of SOCKETS_BROKER_URL runs, and read the application's log.",
    ),
    "unavailable": (
        "The application or a proxy is not available: {answer}",
        "A proxy answers so if no application behind it is healthy. Check that the application "
        "runs, and read the logs.",
    ),
    "gateway timeout": (
        "The application did not answer the proxy in time: {answer}",
        "All workers may be busy (a gunicorn sync worker serves one connection at a time): use "
        "gunicorn -k flask_sockets2.worker",
    ),
    "redirect": (
        "The server redirects to {location}, which browsers do not follow: {answer}",
        "If that is a login page, pass the cookie of a browser that has logged in: --header "
        "'Cookie: session=...'. If the WebSocket has moved, use its new address: {target}",
    ),
    "page": (
        "The answer is a page instead of a WebSocket: {answer}",
        "Either this path serves no WebSocket ('flask sockets routes'), or a proxy in between "
        "does not support WebSockets or removes the Upgrade header field: {proxy}",
    ),
    "client error": ("The request is refused: {answer}", "Read the server's log."),
    "server error": ("The server failed: {answer}", "Read the server's log."),
    "no upgrade": (
        "The answer is 101, but without the header field {name}.",
        "A proxy in between removed it: {proxy}",
    ),
    "wrong accept": (
        "The answer is 101, but Sec-WebSocket-Accept does not fit the key that was sent.",
        "A cache or a proxy answered instead of the server, or the server has a fault.",
    ),
    "not negotiated": (
        "The answer is 101, but accepts an extension or subprotocol that was not offered "
        "({error}).",
        "The server, or a proxy in between, handles Sec-WebSocket-Extensions or -Protocol wrongly.",
    ),
    "no pong": (
        "The handshake succeeded, but no frames pass: no pong came in {timeout:g} s.",
        "A proxy in between holds frames back. Switch buffering off for this path, and let the "
        "proxy treat the path as a WebSocket: {proxy}",
    ),
    "no frames": (
        "The handshake succeeded, but the bytes after it are no WebSocket frames ({error}).",
        "A server or proxy adds bytes of its own; its log, or 'curl -i', may show which.",
    ),
    "cut off": (
        "The handshake succeeded, then the connection was cut without a close frame (1006).",
        "The worker may have died, or a proxy cuts upgraded connections: read their logs.",
    ),
    "closed at once": (
        "The handshake succeeded, then the server closed the WebSocket at once with {code}: "
        "{meaning}.",
        "{advice}",
    ),
    "one at a time": (
        "This connection works, but a second one beside it got no answer in {timeout:g} s: the "
        "server works on one request at a time.",
        "Use another worker: gunicorn -k flask_sockets2.worker app:app. If the server already runs "
        "that worker, its --worker-connections are used up.",
    ),
}

ANSWERS = (
    # status, words of the body (regular expressions); the first that fits names the finding
    ("426", "Sec-WebSocket-Version", "version"),
    ("426", "Connection: Upgrade", "connection header"),
    ("426", "", "upgrade header"),
    ("400", "HTTP/1\\.0", "http/1.0"),
    ("400", "HTTPS port|HTTPS server|SSL-enabled", "needs tls"),  # nginx, Go, Apache
    ("400", "serves pages, not WebSockets", "page only"),
    ("400", "", "bad request"),
    ("401|407", "", "login"),
    ("403", "SOCKETS_ALLOWED_ORIGINS", "origin"),
    ("403", "", "forbidden"),
    ("404", "404 Not Found nginx", "not found by nginx"),
    ("404", "", "not found"),
    ("429", "", "limited"),
    ("501", "", "no socket"),
    ("502", "", "bad gateway"),
    ("503", "too many connections", "full"),
    ("503", "too many connect at once", "crowded"),
    ("503", "is stopping", "stopping"),
    ("503", "messages cannot be delivered", "no broker"),
    ("503", "", "unavailable"),
    ("504", "", "gateway timeout"),
    ("30[12378]", "", "redirect"),
    ("2..", "", "page"),
    ("5..", "", "server error"),
    ("...", "", "client error"),
)

CERTIFICATE_ERRORS = {  # OpenSSL's X509_V_ERR_*
    10: "certificate expired",
    18: "certificate self-signed",
    19: "certificate self-signed",
    20: "certificate chain",
    21: "certificate chain",
    62: "certificate for another host",
    64: "certificate for another host",
}

_SEE_LOG = "Read the server's log."

_CODES = {  # RFC 6455 §7.4.1 and the registry of IANA: meaning, advice
    1000: (
        "the handler has ended",
        "If the handler is to stay, let it loop: for message in ws: ... If it is meant to end, "
        "nothing is wrong.",
    ),
    1001: ("the server is stopping or restarting", "Try again in a moment."),
    1002: ("the server saw a violation of the protocol", "A proxy in between may change frames."),
    1003: ("the server does not accept this kind of data", _SEE_LOG),
    1005: ("the server gave no code", _SEE_LOG),
    1007: ("the server received text that is no UTF-8", "A proxy in between may change frames."),
    1008: ("the application refuses this client", "Pass its login: --header 'Cookie: ...'"),
    1009: ("a message was too large", "Look at SOCKETS_MAX_MESSAGE_SIZE."),
    1011: ("the handler failed with an exception", "The server's log holds its traceback."),
    1012: ("the server restarts", "Try again in a moment."),
    1013: ("the server is overloaded", "Try again in a moment."),
}
_OTHER_CODE = ("a code of the application's own", "Look the code up in the application.")
