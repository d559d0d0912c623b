"""Settings of ``app.config``: key, default, check and meaning of each, written once.

The settings that a folder reads together are the fields of a frozen dataclass::

    @dataclass(frozen=True, slots=True)
    class Settings:
        heartbeat: float = setting("SSE_HEARTBEAT", 15.0, SECONDS)

    seconds = read(Settings, app.config).heartbeat

The docstring of the class has a sentence for each setting, as ``:param heartbeat:``. From these
sentences and the rows, ``tests/settings_page.py`` writes ``docs/settings.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

LONGEST = 10**9
"""Seconds, some thirty years: system calls cannot wait for much longer."""

_MOST = 2**53  # up to here whole numbers are exact in JSON, in Lua and as floats
_SECRETIVE = ("://", "@")  # signs of a server's URL, which may hold a password
_IN_JSON = {"true": "true", "false": "false", "none": "null"}


def is_number(value: object, *, whole: bool = False) -> bool:
    """Tell whether a value is a usable number: no bool, not NaN, not infinite, and not so small
    that dividing by it gives infinity.

    :param whole: whether the value must be an ``int``.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return value == 0 or 1 / _MOST <= abs(value) <= _MOST


def shown(value: object) -> str:
    """Return a value's text for an error; only the type of a long value or one like a URL."""
    text = repr(value)
    hidden = len(text) > 100 or any(each in text for each in _SECRETIVE)
    return type(value).__name__ if hidden else text


# -- kinds of values -------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of values: their unit, the words for an error, and a check of a value."""

    unit: str
    words: str
    fits: Callable[[Any], bool]


def number(
    unit: str, least: float | None = None, most: float = _MOST, *, whole: bool = False
) -> Kind:
    """Return the kind of a number, above 0 unless ``least`` is given."""

    def fits(value: Any) -> bool:
        enough = is_number(value, whole=whole) and (value > 0 if least is None else value >= least)
        return enough and bool(value <= most)

    words = f"a {'whole ' if whole else ''}number of {unit.replace('/s', ' a second')}"
    return Kind(unit, f"{words} above 0" if least is None else f"{words}, at least {least}", fits)


def text(unit: str, words: str, pattern: str) -> Kind:
    """Return the kind of a text that fully matches a pattern."""
    full = re.compile(pattern).fullmatch
    return Kind(unit, words, lambda value: isinstance(value, str) and full(value) is not None)


def or_none(kind: Kind) -> Kind:
    """Return a kind that accepts None as well."""
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
    """A row: one key of ``app.config``, its default, and the kind of its values."""

    key: str
    default: Any
    kind: Kind

    def of(self, config: Mapping[str, Any]) -> Any:
        """Return the value that an application has set, or else the default.

        :raises ValueError: if the value is invalid, naming the key.
        """
        return self.check(config[self.key]) if self.key in config else self.default

    def check(self, value: Any, called: str = "") -> Any:
        """Return a value if it is valid.

        :param called: the user's name for the setting, if not its key.
        :raises ValueError: if the value is invalid, naming the setting.
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
    """Return the dataclass field for a setting, and register its row."""
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
    """Return the settings of a dataclass, with the application's values or else the defaults.

    :param group: the dataclass of the settings.
    :param given: checked values that override the application's.
    :raises ValueError: if a value is invalid, naming its key.
    """
    rows = rows_of(group).items()
    values = {name: row.check(config[row.key]) for name, row in rows if row.key in config}
    if given:
        values.update(given)
    made: T = group(**values) if values else _defaults(group)
    return made
