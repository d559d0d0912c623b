"""The commands of ``flask sockets``."""
