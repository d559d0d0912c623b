"""Turbo Streams for Flask: answer forms with streams, and push updates to open pages."""

from __future__ import annotations

from .extension import Turbo

__all__ = ["Turbo"]
