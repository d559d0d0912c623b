"""Who may import whom: arrows point down, and what is optional is imported where it is used."""

from __future__ import annotations

import ast
import functools
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flask_sockets2"
NAME = PACKAGE.name

ANYTHING = frozenset({"anything"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    "_version": frozenset(),
    "exceptions": frozenset(),
    "typing": frozenset(),
    "stats": frozenset(),
    "limits": frozenset(),
    "orders": frozenset({"brokers.base", "brokers.later", "exceptions"}),
    "answers": frozenset({"orders", "servers.environ"}),
    "rates": frozenset(),
    "metrics": frozenset({"stats"}),
    "signals": frozenset(),
    "wire": frozenset({"exceptions"}),
    "transports": frozenset({"exceptions"}),
    "keepalive": frozenset({"transports"}),
    "ages": frozenset({"transports.base"}),
    "inbox": frozenset({"limits", "rates", "stats", "transports"}),
    "link": frozenset({"wire", "transports", "inbox", "keepalive", "limits", "stats"}),
    "connection": frozenset({"wire", "transports", "limits", "link", "stats", "exceptions"}),
    "brokers": frozenset({"exceptions", "rates"}),
    "encoding": frozenset({"brokers", "wire.frames"}),
    "outlet": frozenset({"brokers.base", "encoding", "stats"}),
    "writer": frozenset({"brokers.base", "outlet"}),
    "recent": frozenset({"brokers"}),
    "replay": frozenset({"brokers.base", "encoding", "outlet", "recent"}),
    "audience": frozenset(
        {"brokers.base", "encoding", "outlet", "replay", "stats", "writer", "exceptions"}
    ),
    "presence": frozenset({"brokers", "exceptions"}),
    "open_channels": frozenset({"audience", "brokers", "recent", "stats", "exceptions"}),
    "own_channels": frozenset({"brokers.base", "exceptions"}),
    "fanout": frozenset(
        {
            "audience",
            "brokers.base",
            "encoding",
            "open_channels",
            "outlet",
            "own_channels",
            "presence",
            "recent",
            "replay",
            "stats",
            "writer",
            "exceptions",
        }
    ),
    "publisher": frozenset({"brokers", "encoding", "orders", "exceptions"}),
    "guests": frozenset({"ages", "transports.base"}),
    "admission": frozenset(
        {
            "ages",
            "brokers.base",
            "guests",
            "orders",
            "rates",
            "stats",
            "transports.base",
            "exceptions",
        }
    ),
    "channels": frozenset(
        {
            "brokers",
            "encoding",
            "fanout",
            "orders",
            "outlet",
            "publisher",
            "rates",
            "signals",
            "stats",
            "writer",
            "exceptions",
        }
    ),
    "reports": frozenset(
        {
            "admission",
            "brokers",
            "channels",
            "stats",
            "transports",
            "exceptions",
        }
    ),
    "top": frozenset({"brokers.base", "reports"}),
    "servers": frozenset(
        {"connection", "transports", "keepalive", "limits", "rates", "wire", "exceptions"}
    ),
    "settings": frozenset({"brokers.base", "guests", "limits", "outlet", "servers.patience"}),
    "extension": frozenset(
        {
            "admission",
            "answers",
            "brokers",
            "channels",
            "connection",
            "exceptions",
            "guests",
            "limits",
            "orders",
            "rates",
            "reports",
            "servers.environ",
            "servers.patience",
            "servers.serving",
            "servers.under_way",
            "settings",
            "signals",
            "signing",
            "stats",
            "transports",
        }
    ),
    "origins": frozenset({"extension", "limits", "rates", "wire.origins"}),
    "event_stream": frozenset(
        {
            "brokers.base",
            "encoding",
            "extension",
            "fanout",
            "guests",
            "limits",
            "origins",
            "outlet",
            "servers.stream",
            "settings",
            "transports.base",
            "exceptions",
        }
    ),
    "signing": frozenset({"brokers.base"}),
    "sessions": frozenset({"connection"}),
    "view": frozenset(
        {"extension", "origins", "sessions", "settings", "connection", "wire", "exceptions"}
    ),
    "middleware": frozenset(
        {"servers", "sessions", "connection", "exceptions", "rates", "wire.handshake"}
    ),
    "health": frozenset({"extension", "servers.environ"}),
    "routes": frozenset({"extension", "settings", "view"}),
    "sockets": frozenset(
        {
            "answers",
            "brokers",
            "channels",
            "connection",
            "extension",
            "health",
            "middleware",
            "origins",
            "publisher",
            "rates",
            "routes",
            "sessions",
            "settings",
            "view",
            "wire.handshake",
        }
    ),
    "turbo": frozenset(
        {
            "answers",
            "brokers",
            "event_stream",
            "extension",
            "limits",
            "orders",
            "origins",
            "publisher",
            "rates",
            "settings",
            "signing",
            "sockets",
            "view",
            "exceptions",
        }
    ),
    "firehose": frozenset({"settings"}),
    "sse": frozenset(
        {
            "answers",
            "brokers",
            "channels",
            "encoding",
            "event_stream",
            "extension",
            "guests",
            "keepalive",
            "limits",
            "origins",
            "publisher",
            "servers",
            "settings",
            "signing",
            "sockets",
            "transports.base",
            "exceptions",
        }
    ),
    "findings": frozenset(),
    "doctor": frozenset({"findings"}),
    "testing": ANYTHING,
    "pytest_plugin": ANYTHING,
    "cli": ANYTHING,
    "__init__": frozenset(
        {
            "_version",
            "brokers.base",
            "connection",
            "exceptions",
            "fanout",
            "firehose",
            "limits",
            "publisher",
            "sockets",
            "turbo",
            "typing",
        }
    ),
}
"""By module or subpackage; within a subpackage its modules may import each other."""

FOR_TYPES_ONLY = {
    ("connection", "brokers.base"): "what subscribe() takes",
    ("connection", "fanout"): "what subscribe() returns",
    ("extension", "metrics"): "what the state holds",
    ("sockets", "testing"): "what test_client() returns",
    ("sse", "sse.interop"): "the redis package is an extra",
    ("__init__", "servers"): "type checkers do not see __getattr__",
}
"""May be imported under TYPE_CHECKING, beyond the table."""

WITHIN_FUNCTIONS = {
    ("sse", "sse.interop"): "the redis package is an extra",
    ("sockets", "testing"): "only test_client() needs it",
    ("extension", "metrics"): "prometheus_client is an extra",
    ("brokers.registry", "brokers.redis"): "the redis package is an extra",
    ("servers.environ", "transports.green"): "gevent is imported where the server runs on it",
    ("servers.environ", "transports.threaded"): "its selector thread is not for gevent's servers",
}
"""May be imported when a function runs, beyond the table, and nothing else may."""

FLASK = frozenset(
    {
        "answers",
        "channels",
        "cli",
        "event_stream",
        "extension",
        "firehose",
        "health",
        "middleware",
        "orders",
        "origins",
        "publisher",
        "pytest_plugin",
        "routes",
        "sessions",
        "signing",
        "sockets",
        "sse",
        "testing",
        "turbo",
        "view",
    }
)

FOREIGN: dict[str, frozenset[str]] = {
    "gevent": frozenset(
        {
            "transports.green",
            "servers.gevent",
            "servers.gunicorn",
            "servers.pool",
            "servers.successor",
            "servers.turns",
        }
    ),
    "greenlet": frozenset({"transports.green"}),
    "geventwebsocket": frozenset({"servers.gevent"}),
    "gunicorn": frozenset({"servers.gunicorn"}),
    "flask": FLASK,
    "werkzeug": FLASK | {"servers.body"},
    "blinker": frozenset({"signals"}),
    "click": frozenset({"cli", "firehose.cli", "turbo.cli"}),
    "itsdangerous": frozenset({"firehose.probe", "signing"}),
    "jinja2": frozenset({"firehose.streaming", "turbo.forms"}),
    "markupsafe": frozenset({"firehose.streaming", "turbo"}),
    "prometheus_client": frozenset({"metrics"}),
    "pytest": frozenset({"pytest_plugin"}),
    "redis": frozenset({"brokers", "sse.interop"}),
    "websockets": frozenset({"wire", "testing", "doctor", "cli"}),
}
"""Who may import which package from elsewhere; no other is imported at all."""

FOREIGN_WITHIN_FUNCTIONS = {
    ("sse", "sse.interop"): "the redis package is an extra",
    ("exceptions", "werkzeug"): "what the test client was answered with",
    ("brokers.leases", "gevent"): "it is loaded where it has patched the sockets",
    ("turbo.commit", "sqlalchemy"): "SQLAlchemy is an extra",
}
"""Besides these, which are imported when a function runs, or for types, and nowhere else."""

NOT_IN_WIRE = frozenset(
    {"asyncio", "selectors", "select", "socket", "ssl", "threading", "time", "datetime"}
)
"""Bytes and values only: no socket, no clock, no thread or lock."""


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    """A module of this package by its name within it, else a package from elsewhere."""
    own: bool
    where: str
    """``module``, ``function`` or ``types``."""
    line: int


def modules() -> dict[str, str]:
    """The sources of the package by the modules' names: ``wire.frames``, ``servers``."""
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        sources[name] = path.read_text()
    return sources


MODULES = modules()


class Finder(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, importer: str) -> None:
        self.importer = importer
        self.where = "module"
        self.found: list[Import] = []

    def add(self, full_name: str, line: int) -> None:
        package, _, name = full_name.partition(".")
        if package != NAME:
            self.found.append(Import(self.importer, package, False, self.where, line))
            return
        while name and name not in MODULES:  # a name in a module
            name = name.rpartition(".")[0]
        self.found.append(Import(self.importer, name or "__init__", True, self.where, line))

    def base(self, level: int) -> str:
        """What so many leading dots mean."""
        full = [NAME] if self.importer == "__init__" else [NAME, *self.importer.split(".")]
        is_package = self.importer == "__init__" or (PACKAGE / Path(*full[1:])).is_dir()
        return ".".join(full[: len(full) - level + is_package])

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        start = [self.base(node.level)] if node.level else []
        module = ".".join([*start, *filter(None, [node.module])])
        for alias in node.names:
            self.add(f"{module}.{alias.name}", node.lineno)

    def visit_If(self, node: ast.If) -> None:
        before = self.where
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.where = "types"
        for child in node.body:
            self.visit(child)
        self.where = before
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        before, self.where = self.where, "function"
        self.generic_visit(node)
        self.where = before

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef


def imports_of(importer: str, source: str) -> list[Import]:
    finder = Finder(importer)
    finder.visit(ast.parse(source))
    return finder.found


def covers(entry: str, module: str) -> bool:
    """``wire`` covers ``wire`` and ``wire.frames``."""
    return module == entry or module.startswith(f"{entry}.")


def allows(exceptions: dict[tuple[str, str], str], found: Import) -> bool:
    return any(
        covers(importer, found.importer) and covers(imported, found.imported)
        for importer, imported in exceptions
    )


def own_import_fits(found: Import) -> bool:
    if found.where == "function":
        return allows(WITHIN_FUNCTIONS, found)
    if found.where == "types" and allows(FOR_TYPES_ONLY, found):
        return True
    layer = found.importer.partition(".")[0]
    allowed = MAY_IMPORT.get(layer, frozenset())
    return (
        allowed is ANYTHING
        or covers(layer, found.imported)
        or any(covers(entry, found.imported) for entry in allowed)
    )


def foreign_import_fits(found: Import) -> bool:
    if covers("wire", found.importer) and found.imported in NOT_IN_WIRE:
        return False
    if found.imported in sys.stdlib_module_names:
        return True
    if allows(FOREIGN_WITHIN_FUNCTIONS, found):
        return found.where != "module"
    if found.where == "function":
        return False
    return any(
        covers(importer, found.importer) for importer in FOREIGN.get(found.imported, frozenset())
    )


def offences(importer: str, source: str) -> list[str]:
    return [
        f"{found.importer}, line {found.line}: imports {found.imported} ({found.where})"
        for found in imports_of(importer, source)
        if not (own_import_fits(found) if found.own else foreign_import_fits(found))
    ]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_the_table_lets_it(module: str) -> None:
    assert module.partition(".")[0] in MAY_IMPORT, f"{module} is not in the table"
    assert offences(module, MODULES[module]) == []


@pytest.mark.parametrize("folder", ["flask_sockets2", "examples"])
def test_nothing_draws_from_the_random_generator_of_the_program(folder: str) -> None:
    """It may be seeded, for a simulation or by Hypothesis; a thread that draws would change it."""
    found = [
        f"{path.name}, line {node.lineno}"
        for path in (PACKAGE.parent / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if draws_from_the_programs_generator(node)
    ]
    assert found == []


def draws_from_the_programs_generator(node: ast.AST) -> bool:
    """Whether it imports more of the module than the classes of generators."""
    if isinstance(node, ast.ImportFrom) and node.module == "random" and not node.level:
        return not {alias.name for alias in node.names} <= {"Random", "SystemRandom"}
    return isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names)


@pytest.mark.parametrize(
    ("source", "draws"),
    [
        ("import random", True),
        ("import secrets, random as chance", True),
        ("def f():\n    from random import uniform", True),
        ("from random import Random, SystemRandom", False),
        ("import randomname\nfrom .random import uniform", False),
    ],
)
def test_a_draw_from_the_random_generator_of_the_program_is_found(source: str, draws: bool) -> None:
    assert any(map(draws_from_the_programs_generator, ast.walk(ast.parse(source)))) == draws


def test_no_imports_go_in_a_circle() -> None:
    """Imports for types, and within the functions listed above, do not count."""
    graph: dict[str, set[str]] = {}
    for module, source in MODULES.items():
        below = {i.imported for i in imports_of(module, source) if i.own and i.where == "module"}
        graph[module] = below - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(" -> ".join(exc.args[1]))


@pytest.mark.parametrize("package", ["brokers", "wire", "transports", "servers"])
def test_the_subpackages_themselves_import_nothing(package: str) -> None:
    assert imports_of(package, MODULES[package]) == []


@pytest.mark.parametrize(
    "exception", [*WITHIN_FUNCTIONS, *FOR_TYPES_ONLY, *FOREIGN_WITHIN_FUNCTIONS]
)
def test_every_exception_from_the_table_is_needed(exception: tuple[str, str]) -> None:
    importer, imported = exception
    found = _imports_elsewhere()
    assert any(covers(importer, a) and covers(imported, b) for a, b in found)


@functools.cache
def _imports_elsewhere() -> set[tuple[str, str]]:
    """All imports within functions and for types: their module, and what it imports."""
    return {
        (importer, i.imported)
        for importer, source in MODULES.items()
        for i in imports_of(importer, source)
        if i.where != "module"
    }


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wire.frames", "from ..connection import Connection"),
        ("wire.frames", "from .. import connection"),
        ("wire.frames", "import flask_sockets2.connection"),
        ("wire.frames", "from flask_sockets2 import connection"),
        ("wire.frames", "from .. import Connection"),
        ("wire.protocol", "import time"),
        ("wire.protocol", "from threading import Lock"),
        ("wire.protocol", "import redis"),
        ("exceptions", "from .typing import WebSocket"),
        ("keepalive", "from .connection import Connection"),
        ("connection", "from .brokers.base import Broker"),
        ("brokers.memory", "from ..wire.frames import build"),
        ("fanout", "from .connection import Connection"),
        ("connection", "if x:\n    from flask import request"),
        ("connection", "try:\n    import gevent\nexcept ImportError:\n    pass"),
        ("connection", "def f():\n    import gevent"),
        ("connection", "class A:\n    def f(self):\n        from . import servers"),
        ("turbo.commit", "import sqlalchemy"),
        ("turbo.forms", "def f():\n    import sqlalchemy"),
        ("sockets", "from .wire.frames import build"),
        ("sockets", "from .testing import SocketsClient"),
        ("sockets", "def f():\n    from .wire.handshake import Upgrade"),
        ("sockets", "if TYPE_CHECKING:\n    pass\nelse:\n    from .testing import SocketsClient"),
        ("sockets", "if TYPE_CHECKING:\n    from .cli import sockets_cli"),
        ("servers.environ", "from gevent import socket"),
        ("servers.gevent", "from gunicorn.workers import base"),
        ("transports.threaded", "async def f():\n    from .green import GreenTransport"),
        ("extension", "from .sockets import Sockets"),
        ("new_module", "from .exceptions import WebSocketError"),
    ],
)
def test_an_import_that_the_table_lacks_is_found(module: str, source: str) -> None:
    assert len(offences(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wire.protocol", "from .frames import build\nfrom ..exceptions import HandshakeError"),
        ("wire", "from .frames import build"),
        ("connection", "from .wire import protocol as wire\nfrom .wire.frames import TEXT"),
        ("view", "from .wire.handshake import parse_upgrade\nfrom flask import Flask"),
        ("sockets", "if TYPE_CHECKING:\n    from .testing import SocketsClient"),
        ("sockets", "def f():\n    from .testing import SocketsClient"),
        ("servers.gunicorn", "import gevent\nfrom .gevent import WebSocketHandler"),
        ("testing", "from .wire.frames import build\nfrom flask.testing import FlaskClient"),
        ("__init__", "from .sockets import Sockets\nfrom ._version import __version__"),
    ],
)
def test_an_import_that_the_table_has_is_let_pass(module: str, source: str) -> None:
    assert offences(module, source) == []
