"""Server-Sent Events with Flask-SSE's interface, over the application's channels."""

from __future__ import annotations

from .blueprint import ServerSentEventsBlueprint, sse
from .generators import stream_func, stream_generator
from .message import Message
from .progress import Progress
from .sse_bp import PubSub, SSE_BluePrint

__all__ = [
    "Message",
    "Progress",
    "PubSub",
    "SSE_BluePrint",
    "ServerSentEventsBlueprint",
    "sse",
    "stream_func",
    "stream_generator",
]
