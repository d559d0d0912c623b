"""Faster page loads: Link headers, 103 Early Hints, and the head of a page sent first."""

from __future__ import annotations

from .early import early_hints, hints
from .extension import Firehose
from .links import Link, link
from .pushes import Connector, push
from .streaming import flush

__all__ = ["Connector", "Firehose", "Link", "early_hints", "flush", "hints", "link", "push"]
