"""Values to bytes and back: no socket, no clock, no thread or lock, no framework."""
