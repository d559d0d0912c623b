"""Scripts: Lua code that the Redis broker runs on the server, each script as one atomic step.

The scripts need Redis 6.2 (for sharded pub/sub of clusters 7.0) or Valkey.

All keys of a channel share a hash tag, so that a cluster holds the keys in one slot::

    P:{channel}:meta            hash: run, epoch, offset
    P:{channel}:log             stream: the history; the entry of offset 7 is 7-0
    P:{channel}:who             hash: identity -> connections in all processes
    P:{channel}:who:<process>   hash: identity -> connections in that process
    P:{channel}:counts          hash: process -> subscribers
    P:{name}:holder             text: holder of a name
    P:<db>:{channel}            pub/sub channel, named with the database, which pub/sub ignores
    P:processes:{processes}               sorted set: process -> end of its lease
    P:processes:{processes}:reaping       sorted set: dead process -> end of its reaper's lease
    P:processes:{processes}:<process>     set: channels with presence or counts of the process

``P`` is :attr:`BrokerOptions.prefix`. An epoch ends with the server's run: a restarted server or a
promoted replica may have lost the newest messages without a trace.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..base import BINARY, JSON, TEXT, Message, Position

__all__ = [
    "APPEND",
    "CLAIM",
    "COUNT",
    "COUNTS",
    "DEAD",
    "END",
    "HISTORY",
    "HOLD",
    "POSITION",
    "REAP",
    "RENEW",
    "SETTLE",
    "SHORTEN",
    "TOUCH",
    "WHO",
    "Call",
    "Names",
    "Script",
    "body_of",
    "parse",
]


class Script:
    """A Lua script.

    :ivar text: source of the script.
    :ivar sha: name of the script on a server that has run it before.
    """

    __slots__ = ("sha", "text")

    def __init__(self, *parts: str) -> None:
        self.text = "".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """A script to run, with the names of its keys and its other arguments."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Any]

    def by_name(self) -> tuple[Any, ...]:
        """Return the command for a server that knows the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def in_full(self) -> tuple[Any, ...]:
        """Return the command for a server that does not know the script."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.args)


class Names:
    """Makes the names of keys and pub/sub channels on the server.

    :param prefix: prefix of all names, without braces, which would mark the hash tag.
    :param db: number of the database.
    """

    def __init__(self, prefix: str, db: int) -> None:
        if "{" in prefix or "}" in prefix:
            raise ValueError(
                f"expected a prefix without braces, got {prefix!r}; set another "
                "SOCKETS_CHANNEL_PREFIX, or prefix= of a Publisher"
            )
        self._prefix = prefix
        self._pubsub = f"{prefix}:{db}:{{"
        self.processes = f"{prefix}:processes:{{processes}}"
        self.reaping = f"{self.processes}:reaping"

    def key(self, channel: str, what: str) -> str:
        """Return the name of a key of a channel."""
        return f"{self._prefix}:{{{_tag(channel)}}}:{what}"

    def log(self, channel: str) -> list[str]:
        """Return the names of the two keys of a channel's log."""
        start = f"{self._prefix}:{{{_tag(channel)}}}:"
        return [start + "meta", start + "log"]

    def pubsub(self, channel: str) -> bytes:
        """Return the name of a channel for pub/sub."""
        return f"{self._pubsub}{_tag(channel)}}}".encode()

    def channels_of(self, process: str) -> str:
        """Return the name of the set of a process's channels."""
        return f"{self.processes}:{process}"


def _tag(channel: str) -> str:
    """Return a channel's name with its braces escaped, since a brace would end the hash tag."""
    if "%" in channel or "{" in channel or "}" in channel:
        return channel.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return channel


# -- messages on the wire ----------------------------------------------------------------------
#
# In the log:    flags and kind (1 byte), length of event (1), length of key (4), event, key, data.
# In pub/sub:    position as text, a space, and the same fields.

_HEADER = struct.Struct(">BBI")
_TRANSIENT = 0x10
_FLAGS = {TEXT: 0, BINARY: 1, JSON: 2}
_KINDS = (TEXT, BINARY, JSON)


def body_of(kind: str, data: bytes, key: str, event: str, transient: bool) -> bytes:
    """Return a message in the format of the log."""
    flags = _FLAGS[kind] | _TRANSIENT if transient else _FLAGS[kind]
    if not key and not event:
        return _HEADER.pack(flags, 0, 0) + data
    event_bytes, key_bytes = event.encode(), key.encode()
    header = _HEADER.pack(flags, len(event_bytes), len(key_bytes))
    return b"".join((header, event_bytes, key_bytes, data))


def parse(channel: str, payload: bytes, position: Position | None = None) -> Message:
    """Parse a message.

    :param payload: entry of the log, or the pub/sub payload if no position is given.
    :raises ValueError: if the payload is malformed, since other programs may publish, too.
    """
    start = 0
    if position is None:
        start = payload.index(b" ", 0, 64) + 1
        position = Position(payload[:16].decode("ascii"), int(payload[17 : start - 1]))
    try:
        flags, event_length, key_length = _HEADER.unpack_from(payload, start)
        kind = _KINDS[flags & 0x0F]
    except (struct.error, IndexError) as exc:
        raise ValueError("no message of a channel") from exc
    start += 6
    if not event_length and not key_length:
        transient = bool(flags & _TRANSIENT)
        return Message(channel, kind, payload[start:], position, "", "", transient)
    key = start + event_length
    data = key + key_length
    return Message(
        channel,
        kind,
        payload[data:],
        position,
        payload[key:data].decode(),
        payload[start:key].decode(),
        bool(flags & _TRANSIENT),
    )


# -- Lua: messages -----------------------------------------------------------------------------

# log_of(meta, log, fresh) -> epoch, offset of the newest message. If there is no log, or the log is
# from another run of the server or another program, a new log begins under the epoch `fresh`.
# HSET comes first: a server out of memory refuses HSET, so that nothing has changed then. If an
# access control list forbids INFO, all runs count as the same.
#
# Any client can create a log without messages at no cost, so that log is kept for a minute. If a
# process listens, POSITION keeps the log for longer.
_LOG_OF = """
local DAY, MINUTE = 86400000, 60000
local run
local function log_of(meta, log, fresh)
  if not run then
    local info = redis.pcall('INFO', 'server')
    run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
  end
  local found = redis.call('HMGET', meta, 'run', 'epoch', 'offset')
  if found[1] == run and string.match(found[2] or '', '^%x+$') and #found[2] == 16
      and string.match(found[3] or '', '^%d+$') and #found[3] < 16 then
    return found[2], tonumber(found[3])
  end
  redis.call('HSET', meta, 'run', run, 'epoch', fresh, 'offset', '0')
  redis.call('PEXPIRE', meta, MINUTE)
  redis.call('DEL', log)
  return fresh, 0
end
local function text(number)
  return string.format('%.0f', number)
end
"""

# append(log, size, offset, message) -> whether the log had to be rewritten.
# Another program may have added an entry, for example with an ID chosen by the server. IDs of a
# stream only grow, even if the entry is deleted, so the log is rewritten without that entry.
_APPEND_TO = """
local function append(log, size, offset, message)
  local id = text(offset) .. '-0'
  local reply = redis.pcall('XADD', log, 'MAXLEN', '~', size, id, 'm', message)
  if not (type(reply) == 'table' and reply.err) then return false end
  local own = {}
  if string.find(reply.err, 'ERR The ', 1, true) then
    own = redis.call('XREVRANGE', log, text(offset - 1) .. '-0', '-', 'COUNT', size)
    redis.call('DEL', log)
  end
  for i = #own, 1, -1 do
    redis.call('XADD', log, own[i][1], unpack(own[i][2]))
  end
  redis.call('XADD', log, 'MAXLEN', '~', size, id, 'm', message)
  return true
end
"""

# Publishes messages in their order: all of them, or none if there is an error.
#   KEYS: meta and log of each channel.
#   ARGV: PUBLISH or SPUBLISH, fresh epoch, size of the log, milliseconds that the log and the meta
#         are kept; then for each message: number of its channel (1 is the first), the channel's
#         name in pub/sub, '1' for a transient message, the message.
#   Returns the positions as one text, separated by spaces; then '!' and the channel's number for
#   each log that had to be rewritten.
APPEND = Script(
    _LOG_OF,
    _APPEND_TO,
    """
local epochs, offsets, appended, positions, renewed = {}, {}, {}, {}, {}
for i = 6, #ARGV, 4 do
  local channel = tonumber(ARGV[i])
  local meta, log = KEYS[2 * channel - 1], KEYS[2 * channel]
  if not epochs[channel] then
    epochs[channel], offsets[channel] = log_of(meta, log, ARGV[2])
  end
  if ARGV[i + 2] ~= '1' then
    offsets[channel] = redis.call('HINCRBY', meta, 'offset', 1)
    appended[channel] = true
    if ARGV[3] ~= '0' and append(log, ARGV[3], offsets[channel], ARGV[i + 3]) then
      renewed[#renewed + 1] = '!' .. channel
    end
  end
  local position = epochs[channel] .. '-' .. text(offsets[channel])
  redis.call(ARGV[1], ARGV[i + 1], position .. ' ' .. ARGV[i + 3])
  positions[#positions + 1] = position
end
for channel in pairs(appended) do
  redis.call('PEXPIRE', KEYS[2 * channel - 1], ARGV[5])
  redis.call('PEXPIRE', KEYS[2 * channel], ARGV[4])
end
return table.concat(positions, ' ') .. table.concat(renewed)
""",
)

# Returns the newest position as {epoch, offset}. Also keeps the meta: for a day if the log has
# messages, else for the time given. A subscribed process repeats this call. Otherwise a channel
# that is silent for a day would seem to have lost messages.
#   KEYS: meta, log.  ARGV: fresh epoch; milliseconds that a log without messages is kept.
POSITION = Script(
    _LOG_OF,
    """
local epoch, offset = log_of(KEYS[1], KEYS[2], ARGV[1])
local left, kept = redis.call('PTTL', KEYS[1]), tonumber(ARGV[2])
if offset > 0 and left < DAY / 2 then
  redis.call('PEXPIRE', KEYS[1], DAY)
elseif offset == 0 and left < kept then
  redis.call('PEXPIRE', KEYS[1], kept)
end
return {epoch, text(offset)}
""",
)

# Returns the newest position and a page of the messages after a given position. The page goes from
# the newest message back, to a gap at most.
#   Returns {epoch, offset, 1 if older messages may follow, {message, ..}}.
#   KEYS: meta, log.
#   ARGV: fresh epoch; epoch and offset of the given position, epoch '' for all kept messages; size
#         of the log; offset of the page's first message, '' for the newest; most messages and bytes
#         on the page; messages that are on the page even if they exceed the bytes.
# Messages are read one by one, since their length is unknown before they are read.
HISTORY = Script(
    _LOG_OF,
    """
local epoch, newest = log_of(KEYS[1], KEYS[2], ARGV[1])
local after = newest
if ARGV[2] == '' then
  after = math.max(newest - tonumber(ARGV[4]), 0)
elseif ARGV[2] == epoch then
  after = tonumber(ARGV[3])
end
local offset = tonumber(ARGV[5]) or newest
local page, bytes, more = {}, 0, 0
while offset > after do
  local id = text(offset) .. '-0'
  local entry = redis.call('XREVRANGE', KEYS[2], id, id, 'COUNT', 1)[1]
  if not entry then break end
  local message = entry[2][2]
  bytes = bytes + #message
  if #page >= tonumber(ARGV[6]) or (bytes > tonumber(ARGV[7]) and #page >= tonumber(ARGV[8])) then
    more = 1
    break
  end
  page[#page + 1] = message
  offset = offset - 1
end
return {epoch, text(newest), more, page}
""",
)

# -- Lua: presence -----------------------------------------------------------------------------

# now() -> milliseconds, by the server's clock.
_NOW = """
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
"""

# late(deadline) -> whether the deadline is over.
# A process may be paused between renewing its lease and reporting under that lease. If the process
# was reaped meanwhile, no other process would reap the late report. So each report has a deadline
# before the end of the lease, and is refused afterwards. The lease itself is in another slot.
_LATE = (
    _NOW
    + """
local function late(deadline)
  return now() > tonumber(deadline)
end
"""
)

# settle(process, identity, old, new) sets the connections of an identity in a process, whose key is
# `process`. If they are the first in all processes, `join` is published; after the last, `leave`.
#   KEYS: meta, log, who, who of the process, ...
#   ARGV: PUBLISH or SPUBLISH, fresh epoch, name of the channel in pub/sub, the messages `join` and
#         `leave` without their data, ...
# clear(process) removes all identities of a dead process from the channel.
_SETTLE = """
local function settle(process, identity, old, new)
  if new == old then return end
  local total = redis.call('HINCRBY', KEYS[3], identity, new - old)
  if new > 0 then
    redis.call('HSET', process, identity, text(new))
  else
    redis.call('HDEL', process, identity)
  end
  local event
  if total <= 0 then
    redis.call('HDEL', KEYS[3], identity)
    event = ARGV[5]
  elseif total == new - old then
    event = ARGV[4]
  end
  if event then
    local epoch, offset = log_of(KEYS[1], KEYS[2], ARGV[2])
    redis.call(ARGV[1], ARGV[3], epoch .. '-' .. text(offset) .. ' ' .. event .. identity)
  end
end
local function clear(process)
  local found = redis.call('HGETALL', process)
  for i = 1, #found, 2 do
    settle(process, found[i], tonumber(found[i + 1]) or 0, 0)
  end
end
"""

# Sets the connections of an identity in a process; can be repeated.
#   KEYS and ARGV: as above; then identity, connections, milliseconds to keep the keys, deadline.
#   Returns 0 if the deadline is over.
SETTLE = Script(
    _LOG_OF,
    _SETTLE,
    _LATE,
    """
if late(ARGV[9]) then return 0 end
local old = tonumber(redis.call('HGET', KEYS[4], ARGV[6]) or 0)
settle(KEYS[4], ARGV[6], old, tonumber(ARGV[7]))
redis.call('PEXPIRE', KEYS[3], ARGV[8])
redis.call('PEXPIRE', KEYS[4], ARGV[8])
return 1
""",
)

# Removes a dead process from a channel; can be repeated.
#   KEYS and ARGV: as above, and KEYS[5]: counts; ARGV[6]: the process.
REAP = Script(
    _LOG_OF,
    _SETTLE,
    """
clear(KEYS[4])
redis.call('HDEL', KEYS[5], ARGV[6])
return 1
""",
)

# Returns the identities present in a channel, after removing the identities of dead processes. If a
# reader only ignored these identities, the server would not see them leave. So an identity that
# comes back before the reaper would not be announced by `join`.
#   KEYS: meta, log, who, who of each dead process.  ARGV: as above.
WHO = Script(
    _LOG_OF,
    _SETTLE,
    """
for k = 4, #KEYS do
  clear(KEYS[k])
end
local identities = {}
local found = redis.call('HGETALL', KEYS[3])
for i = 1, #found, 2 do
  if (tonumber(found[i + 1]) or 0) > 0 then identities[#identities + 1] = found[i] end
end
return identities
""",
)

# Sets the number of a channel's subscribers in a process.
#   KEYS: counts.  ARGV: process, subscribers, milliseconds to keep the key, deadline.
#   Returns 0 if the deadline is over.
COUNT = Script(
    _LATE,
    """
if late(ARGV[4]) then return 0 end
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

# Returns the numbers of a channel's subscribers: {process, subscribers, ...}.
#   KEYS: counts.
COUNTS = Script("return redis.call('HGETALL', KEYS[1])\n")

# Extends the lifetime of keys.  ARGV: milliseconds.
TOUCH = Script(
    """
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return 1
""",
)

# Renews the lease of a process, and adds channels to the process.
#   KEYS: processes, reaping, channels of the process.
#   ARGV: process; milliseconds of its lease, and to keep the keys; '1' if a lease should exist
#         already; '1' to remove the channels instead; channels.
#   Returns {0} if the lease should exist but does not, since the process was declared dead; else
#         the time when its lease ends, and the dead processes.
RENEW = Script(
    _NOW,
    """
if ARGV[4] == '1' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return {0}
end
local time = now()
redis.call('ZADD', KEYS[1], time + ARGV[2], ARGV[1])
for i = 6, #ARGV do
  redis.call(ARGV[5] == '1' and 'SREM' or 'SADD', KEYS[3], ARGV[i])
end
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[3])
end
local found = {time + ARGV[2]}
for k = 1, 2 do
  for _, process in ipairs(redis.call('ZRANGEBYSCORE', KEYS[k], '-inf', time)) do
    found[#found + 1] = process
  end
end
return found
""",
)

# Returns the processes whose lease is over and whose presence may not have been cleared yet. From
# then on these processes are dead for all: instead of renewing its lease, each must take a new one.
#   KEYS: processes, reaping.  ARGV: milliseconds to keep the key.
DEAD = Script(
    _NOW,
    """
local time = now()
for _, process in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time)) do
  redis.call('ZREM', KEYS[1], process)
  redis.call('ZADD', KEYS[2], time, process)
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return redis.call('ZRANGE', KEYS[2], 0, -1)
""",
)

# Claims a dead process for reaping: returns its channels, or nil if another process has the claim.
# The dead process is listed in `reaping` until END, so that another reaper can take over.
#   KEYS: processes, reaping, channels of the process.
#   ARGV: process; milliseconds of the claim, and to keep the key.
CLAIM = Script(
    _NOW,
    """
local time = now()
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease then
  lease = redis.call('ZSCORE', KEYS[2], ARGV[1])
end
if not lease or tonumber(lease) > time then
  return false
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], time + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('SMEMBERS', KEYS[3])
""",
)

# Ends the reaping of a process.
#   KEYS: reaping, channels of the process.  ARGV: process.
END = Script(
    """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
""",
)

# Shortens the lease of an ending process.
#   KEYS: processes.  ARGV: process, milliseconds.
SHORTEN = Script(
    _NOW,
    """
redis.call('ZADD', KEYS[1], 'XX', now() + ARGV[2], ARGV[1])
return 1
""",
)

# Holds a name: returns 1, or 0 if another holder has the name.
#   KEYS: key of the name.  ARGV: new holder; milliseconds, 0 to release the name.
HOLD = Script(
    """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
""",
)
