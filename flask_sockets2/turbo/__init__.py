"""Turbo Streams for Flask: answers to forms, and pushes to pages that never go stale."""

from __future__ import annotations

from .extension import Turbo

__all__ = ["Turbo"]
