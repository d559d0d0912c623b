"""Settings of ``app.config``, a row each: its key, its default, what it must be and what it does.

The settings that a folder reads together are the fields of a frozen dataclass::

    @dataclass(frozen=True, slots=True)
    class Settings:
        heartbeat: float = setting("SSE_HEARTBEAT", 15.0, SECONDS)

    seconds = read(Settings, app.config).heartbeat

The docstring of the class has a sentence for each, as ``:param heartbeat:``. ``docs/settings.rst``
is written from them and from the rows, by ``tests/settings_page.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

LONGEST = 10**9
"""Seconds, some thirty years: the system's calls cannot wait for much longer."""

_MOST = 2**53  # up to it whole numbers are exact in JSON, in Lua and as floats
_SECRETIVE = ("://", "@")  # in what may be the URL of a server, with a password
_IN_JSON = {"true": "true", "false": "false", "none": "null"}


def is_number(value: object, *, whole: bool = False) -> bool:
    """Tell whether a value can be calculated with: no bool, not NaN, and neither it nor one divided
    by it is infinite.

    :param whole: fractions and floats do not count.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return value == 0 or 1 / _MOST <= abs(value) <= _MOST


def shown(value: object) -> str:
    """Return a value as an error may show it; of a long one, or one like a URL, the type alone."""
    text = repr(value)
    hidden = len(text) > 100 or any(each in text for each in _SECRETIVE)
    return type(value).__name__ if hidden else text


# -- what a value must be --------------------------------------------------------------------------


class Kind(NamedTuple):
    """What a value must be: its unit, the words for an error, and what tells whether it fits."""

    unit: str
    words: str
    fits: Callable[[Any], bool]


def number(
    unit: str, least: float | None = None, most: float = _MOST, *, whole: bool = False
) -> Kind:
    """Return the kind of a number, above 0 unless it has another least value."""

    def fits(value: Any) -> bool:
        enough = is_number(value, whole=whole) and (value > 0 if least is None else value >= least)
        return enough and bool(value <= most)

    words = f"a {'whole ' if whole else ''}number of {unit.replace('/s', ' a second')}"
    return Kind(unit, f"{words} above 0" if least is None else f"{words}, at least {least}", fits)


def text(unit: str, words: str, pattern: str) -> Kind:
    """Return the kind of a text that matches a pattern as a whole."""
    full = re.compile(pattern).fullmatch
    return Kind(unit, words, lambda value: isinstance(value, str) and full(value) is not None)


def or_none(kind: Kind) -> Kind:
    """Return the kind that takes None as well."""
    rest = ", or None" if "," in kind.words else " or None"
    return Kind(kind.unit, kind.words + rest, lambda value: value is None or kind.fits(value))


SECONDS = number("seconds", most=LONGEST)
BYTES = number("bytes", whole=True)
SWITCH = Kind("bool", "True or False", lambda value: isinstance(value, bool))
URL = Kind("URL", "a URL such as redis://localhost:6379/0", lambda value: isinstance(value, str))
ROUTE = or_none(
    text(
        "path",
        "a path that begins with a slash and has no variables, such as '/health'",
        r"/(?!/)((?!//)[^\s<>?#\\])*",
    )
)


# -- rows ------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A row: one key of ``app.config``, its default, and what it must be."""

    key: str
    default: Any
    kind: Kind

    def of(self, config: Mapping[str, Any]) -> Any:
        """Return the value that an application has set, else the default.

        :raises ValueError: if the value is not what it must be, naming the key.
        """
        return self.check(config[self.key]) if self.key in config else self.default

    def check(self, value: Any, called: str = "") -> Any:
        """Return a value if it is what it must be.

        :param called: what the user calls the setting, if not by its key.
        :raises ValueError: if it is not, naming the setting.
        """
        if self.kind.fits(value):
            return value
        hint = ""
        if isinstance(value, str) and value.lower() in _IN_JSON:
            hint = f"; in an environment variable write {_IN_JSON[value.lower()]}"
        raise ValueError(
            f"{called or self.key} must be {self.kind.words}, got {shown(value)}{hint}"
        )


ROWS: dict[str, Setting] = {}
"""The rows of all parts of the package that have been imported, by key."""


def setting(key: str, default: T, kind: Kind) -> T:
    """Return the field of a dataclass for a setting."""
    row = ROWS[key] = Setting(key, default, kind)
    return field(default=default, metadata={"row": row})


@cache
def rows_of(group: Callable[..., Any]) -> dict[str, Setting]:
    """Return the rows of a dataclass, by the names of its fields."""
    return {each.name: each.metadata["row"] for each in fields(group)}  # type: ignore[arg-type]


@cache
def _defaults(group: Callable[..., Any]) -> Any:
    return group()


def read(
    group: Callable[..., T], config: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> T:
    """Return settings that are read together: those given, else the application's.

    :param group: the dataclass with them.
    :param given: checked values, which count instead of the application's.
    :raises ValueError: if a value is not what it must be, naming its key.
    """
    rows = rows_of(group).items()
    values = {name: row.check(config[row.key]) for name, row in rows if row.key in config}
    if given:
        values.update(given)
    made: T = group(**values) if values else _defaults(group)
    return made
