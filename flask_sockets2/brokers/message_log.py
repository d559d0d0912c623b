"""MessageLog: the newest messages of one channel, bounded by number and by bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from .base import History, Message, Position

__all__ = ["MessageLog"]


class MessageLog:
    """The newest messages of one channel, without a gap between them.

    :param position: newest position so far; appended messages follow.
    :param size: number of messages kept.
    :param size_bytes: bytes of data kept; the newest message is always kept. Encoded copies of the
        messages are kept as well and not counted.

    Not safe for concurrent use; the owner's lock guards the log.
    """

    __slots__ = ("_bytes", "_messages", "_size", "_size_bytes", "position")

    def __init__(self, position: Position, size: int, size_bytes: int) -> None:
        #: Position of the newest message; the given position if there is none.
        self.position = position
        self._size = size
        self._size_bytes = size_bytes
        self._messages: deque[Message] | None = None  # made with the first message
        self._bytes = 0

    def append(self, message: Message) -> None:
        """Add the next message; its position becomes that of the log."""
        self.position = message.position
        if not self._size:
            return
        messages = self._messages
        if messages is None:
            messages = self._messages = deque()
        messages.append(message)
        self._bytes += len(message.data)
        while len(messages) > self._size or (self._bytes > self._size_bytes and len(messages) > 1):
            self._bytes -= len(messages.popleft().data)

    def precede(self, messages: Sequence[Message]) -> list[Message]:
        """Add older messages at the front, as long as no gap arises and there is room.

        :param messages: a history, in its order.
        :returns: that history, with the log's own object for each message that the log has.
        """
        own = self._messages
        if own is None:
            own = self._messages = deque()
        epoch, newest = self.position
        for message in reversed(messages):
            if len(own) >= self._size:
                break
            if message.position == (epoch, newest - len(own)):
                if own and self._bytes + len(message.data) > self._size_bytes:
                    break
                own.appendleft(message)
                self._bytes += len(message.data)
        known = {message.position: message for message in own}
        return [known.get(message.position, message) for message in messages]

    def since(self, since: Position | None) -> History:
        """Return the messages after a position; after None, all that are kept."""
        messages = self._messages or ()
        if since is None:
            return History(tuple(messages), self.position)
        epoch, newest = self.position
        behind = newest - since.offset
        if since.epoch != epoch or not 0 <= behind <= len(messages):
            return History((), self.position, complete=False)
        return History(tuple(islice(messages, len(messages) - behind, None)), self.position)

    def clear(self) -> None:
        """Forget the messages; the position stays."""
        self._messages = None
        self._bytes = 0
