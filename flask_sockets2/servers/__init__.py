"""Where a connection comes from: our own servers, or the socket of somebody else's."""
