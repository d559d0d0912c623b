"""Quotas and rate limits for connections, and disconnecting users."""
