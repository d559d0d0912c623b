"""One WebSocket connection: its messages, its keepalive and its limits."""
