"""Write the tables of ``docs/settings.rst``: run ``python -m tests.settings_page``.

The page says which settings a table has. Their defaults and units come from the rows, and what they
do from the docstrings of the classes that hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from textwrap import wrap
from typing import Any

from flask_sockets2.admission.guests import Rules
from flask_sockets2.application.settings import AppSettings
from flask_sockets2.brokers.base import BrokerOptions
from flask_sockets2.connection.limits import Limits
from flask_sockets2.firehose.settings import FirehoseSettings
from flask_sockets2.servers.patience import PatienceSettings
from flask_sockets2.settings import Setting, rows_of
from flask_sockets2.sse.settings import Settings
from flask_sockets2.turbo.settings import TurboSettings

PAGE = Path(__file__).parents[1] / "docs" / "settings.rst"
WIDTH = 100

GROUPS = [
    AppSettings,
    BrokerOptions,
    FirehoseSettings,
    Limits,
    PatienceSettings,
    Rules,
    Settings,
    TurboSettings,
]

_TABLE = re.compile(r"^=+ =+ =+ =+\nKey .*\n=.*\n((?:.+\n)+)", re.MULTILINE)


def meanings_of(group: type[Any]) -> dict[str, str]:
    """Return the sentences of a class's docstring, by the names of its fields."""
    found = re.findall(r"^:param (\w+): (.+(?:\n .+)*)", getdoc(group) or "", re.MULTILINE)
    return {name: " ".join(sentence.split()) for name, sentence in found}


def default_of(row: Setting) -> str:
    """Return the default as the page has it."""
    value = row.default
    if row.kind.unit == "bytes" and value:
        return f"{value // 2**20} MiB"
    if value is None or isinstance(value, str | bool):
        return "none" if value is None else str(value)
    return f"{value:.0f}"


def cells() -> dict[str, tuple[str, str, str, str]]:
    """Return the cells of each setting, by its key."""
    return {
        row.key: (f"``{row.key}``", default_of(row), row.kind.unit, meanings_of(group)[name])
        for group in GROUPS
        for name, row in rows_of(group).items()
    }


def table(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    head = ("Key", "Default", "Unit", "Meaning")
    widths = [max(map(len, column)) for column in list(zip(head, *rows, strict=True))[:3]]
    widths.append(WIDTH - sum(widths) - 3)
    rule = " ".join("=" * width for width in widths)
    yield from (rule, line_of(head, widths), rule)
    for row in rows:
        first, *others = wrap(row[3], widths[3], break_long_words=False, break_on_hyphens=False)
        yield line_of((*row[:3], first), widths)
        yield from (line_of(("", "", "", other), widths) for other in others)
    yield rule


def line_of(texts: tuple[str, ...], widths: list[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
    return " ".join(padded).rstrip()


def written(page: str) -> str:
    """Return the page with its tables as the rows have them."""
    known = cells()

    def renew(found: re.Match[str]) -> str:
        keys = re.findall("^``([A-Z_0-9]+)``", found[1], re.MULTILINE)
        return "\n".join(table([known[key] for key in keys])) + "\n"

    return _TABLE.sub(renew, page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
