"""Substitutes: advice for attributes that other WebSocket packages have and this one has not."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["NO_HANDLER", "SUBSTITUTES", "NoHandler"]

_CHANNEL = (
    "call ws.subscribe(channel) in the handler of each client, and sockets.publish(channel, data) "
    "to send to all of them"
)
SUBSTITUTES = {
    # of gevent-websocket
    "clients": _CHANNEL,
    "current_app": "use flask.current_app",
    "handle_close": "receive() returns None at the end; ws.close_code says how it ended",
    "handle_ping": "pings are answered without the handler",
    "handle_pong": "ws.latency is the time of the last ping to its pong",
    "raw_read": "use ws.receive()",
    "raw_write": "use ws.send() or ws.send_frame()",
    "read_frame": "use ws.receive()",
    "read_message": "use ws.receive()",
    "stream": "use ws.receive() and ws.send(); SOCKETS_PING_INTERVAL is for keepalive, and under "
    "gunicorn -k flask_sockets2.worker the socket is ws.handler.socket",
    # of Flask-SocketIO, Flask-Sock, Starlette and the websockets library
    "broadcast": _CHANNEL,
    "connected": "use not ws.closed",
    "emit": f"use ws.send() for this client alone, or {_CHANNEL}",
    "iter_text": "use a loop: for message in ws",
    "join": "use ws.subscribe(channel)",
    "join_room": "use ws.subscribe(channel)",
    "receive_bytes": "use ws.receive(), which returns bytes for a binary message",
    "receive_json": "use flask.json.loads(ws.receive())",
    "receive_text": "use ws.receive(), which returns str for a text message",
    "recv": "use ws.receive()",
    "send_bytes": "use ws.send()",
    "send_json": "use ws.send(flask.json.dumps(data))",
    "send_text": "use ws.send()",
}
_OF_HANDLER = {
    "active_client": _CHANNEL,
    "client_address": 'the address of the client is ws.environ["REMOTE_ADDR"]',
    "environ": "use ws.environ",
    "server": _CHANNEL,
    "websocket": "use ws",
}


class NoHandler:
    """Stands in, as a false value, if the server has no handler or its handler has returned."""

    __slots__ = ("__weakref__",)

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> NoReturn:
        instead = _OF_HANDLER.get(name, "start the program with -k flask_sockets2.worker")
        raise AttributeError(
            f"ws.handler has no {name!r}: it is there until the handler returns, under "
            f"flask_sockets2.worker and WebSocketServer; {instead}"
        )


NO_HANDLER = NoHandler()
