"""Transports: connected sockets on the hub of gevent or on a selector thread."""
