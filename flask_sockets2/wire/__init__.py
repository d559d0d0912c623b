"""WebSocket protocol without I/O: no socket, no clock, no thread or lock, no framework."""
