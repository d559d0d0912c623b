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

BASICS = frozenset({"exceptions", "settings", "stats", "throttled_log", "token_bucket"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    "_version": frozenset(),
    "exceptions": frozenset(),
    "typing": frozenset(),
    "stats": frozenset(),
    "settings": frozenset(),
    "signals": frozenset(),
    "token_bucket": frozenset(),
    "throttled_log": frozenset(),
    "concurrency": frozenset(),
    "wire": frozenset({"exceptions"}),
    "transports": frozenset({"concurrency", "exceptions"}),
    "brokers": BASICS | {"concurrency"},
    "fanout": BASICS | {"brokers", "concurrency", "wire"},
    "admission": BASICS | {"brokers", "concurrency", "transports", "wire"},
    "channels": BASICS | {"admission", "brokers", "fanout", "signals"},
    "connection": BASICS | {"brokers", "fanout", "transports", "wire"},
    "servers": BASICS | {"connection", "transports", "wire"},
    "testing": frozenset({"exceptions", "servers"}),
    "pytest_plugin": frozenset({"testing"}),
    "application": BASICS
    | {"admission", "brokers", "channels", "concurrency", "connection", "fanout", "servers"}
    | {"signals", "testing", "transports", "wire"},
    "turbo": BASICS
    | {"admission", "application", "brokers", "channels", "concurrency", "connection"},
    "sse": BASICS
    | {"admission", "application", "brokers", "channels", "concurrency", "connection"}
    | {"fanout", "servers", "transports"},
    "firehose": frozenset({"application", "settings"}),
    "tools": BASICS | {"application", "brokers", "channels", "fanout"},
    "__init__": ANYTHING,
}
"""By folder, or by module at the top. Imports within functions and for types count."""

BARE = (
    {name for name in MAY_IMPORT if (PACKAGE / name).is_dir()}
    - {"turbo", "sse", "firehose"}  # from which users import
    | {"brokers.redis"}
)
"""Folders whose ``__init__`` imports nothing."""

WITHIN_FUNCTIONS = {
    ("sse", "sse.interop"): "the redis package is an extra",
    ("application", "testing"): "only test_client() needs it",
    ("application", "application.metrics"): "prometheus_client is an extra",
    ("brokers.registry", "brokers.redis"): "the redis package is an extra",
    ("servers.takeover", "transports.green"): "gevent is imported where the server runs on it",
    ("servers.takeover", "transports.threaded"): "its selector thread is not for gevent's servers",
    ("transports.current", "transports.green"): "gevent is imported where the caller runs on it",
    ("transports.current", "transports.threaded"): "its selector thread is not for greenlets",
    ("__init__", "servers"): "gevent and gunicorn are for those who serve with them",
}
"""May be imported when a function runs, or for types, and not when the module is imported."""

FLASK = frozenset(
    {
        "admission.disconnects",
        "application",
        "channels",
        "firehose",
        "pytest_plugin",
        "sse",
        "testing",
        "tools.cli",
        "turbo",
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
    "click": frozenset({"tools.cli", "firehose.cli", "turbo.cli"}),
    "itsdangerous": frozenset({"firehose.probe", "application.signing"}),
    "jinja2": frozenset({"firehose.streaming", "turbo.responses"}),
    "markupsafe": frozenset({"firehose.streaming", "turbo"}),
    "prometheus_client": frozenset({"application.metrics"}),
    "pytest": frozenset({"pytest_plugin"}),
    "redis": frozenset({"brokers.redis", "sse.interop"}),
    "websockets": frozenset({"wire", "testing", "tools"}),
}
"""Who may import which package from elsewhere; no other is imported at all."""

FOREIGN_WITHIN_FUNCTIONS = {
    ("exceptions", "werkzeug"): "what the test client was answered with",
    ("brokers.redis.leases", "gevent"): "it is loaded where it has patched the sockets",
    ("turbo.after_commit", "sqlalchemy"): "SQLAlchemy is an extra",
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
    folder = found.importer.partition(".")[0]
    allowed = MAY_IMPORT.get(folder, frozenset())
    is_in_table = allowed is ANYTHING or found.imported.partition(".")[0] in {folder, *allowed}
    if not is_in_table:
        return False
    if found.where == "types":
        return True
    return allows(WITHIN_FUNCTIONS, found) == (found.where == "function")


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


def test_no_imports_of_folders_go_in_a_circle() -> None:
    graph = {
        folder: {imported for imported in MAY_IMPORT if imported in allowed}
        for folder, allowed in MAY_IMPORT.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(" -> ".join(exc.args[1]))


def test_no_imports_of_modules_go_in_a_circle() -> None:
    """Imports within functions and for types do not count."""
    graph: dict[str, set[str]] = {}
    for module, source in MODULES.items():
        below = {i.imported for i in imports_of(module, source) if i.own and i.where == "module"}
        graph[module] = below - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(" -> ".join(exc.args[1]))


def test_the_folders_are_few() -> None:
    assert len([name for name in MAY_IMPORT if not (PACKAGE / name).is_dir()]) <= 12
    assert len(MAY_IMPORT) <= 26


@pytest.mark.parametrize("package", sorted(BARE))
def test_the_subpackages_themselves_import_nothing(package: str) -> None:
    assert imports_of(package, MODULES[package]) == []


@pytest.mark.parametrize("exception", [*WITHIN_FUNCTIONS, *FOREIGN_WITHIN_FUNCTIONS])
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
        ("wire.frames", "from ..connection.connection import Connection"),
        ("wire.frames", "from ..connection import connection"),
        ("wire.frames", "import flask_sockets2.connection.connection"),
        ("wire.frames", "from flask_sockets2.connection import connection"),
        ("wire.frames", "from .. import Connection"),
        ("wire.protocol", "import time"),
        ("wire.protocol", "from threading import Lock"),
        ("wire.protocol", "import redis"),
        ("exceptions", "from .typing import WebSocket"),
        ("transports.base", "from ..connection.connection import Connection"),
        ("connection.connection", "from ..channels.publisher import Publisher"),
        ("brokers.memory", "from ..wire.frames import build"),
        ("fanout.fanout", "from ..connection.connection import Connection"),
        ("fanout.fanout", "if TYPE_CHECKING:\n    from ..connection.connection import Connection"),
        ("connection.driver", "if x:\n    from flask import request"),
        ("connection.driver", "try:\n    import gevent\nexcept ImportError:\n    pass"),
        ("connection.driver", "def f():\n    import gevent"),
        ("connection.driver", "class A:\n    def f(self):\n        from .. import servers"),
        ("turbo.after_commit", "import sqlalchemy"),
        ("turbo.responses", "def f():\n    import sqlalchemy"),
        ("application.sockets", "from ..testing import SocketsClient"),
        ("application.sockets", "def f():\n    from ..wire.handshake import Upgrade"),
        ("application.sockets", "if TYPE_CHECKING:\n    from ..tools.cli import sockets_cli"),
        ("brokers.registry", "from .redis.broker import RedisBroker"),
        ("servers.takeover", "from gevent import socket"),
        ("servers.gevent", "from gunicorn.workers import base"),
        ("transports.threaded", "async def f():\n    from .green import GreenTransport"),
        ("servers.pool", "from ..application.sockets import Sockets"),
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
        ("connection.driver", "from ..wire import protocol as wire\nfrom ..wire.frames import X"),
        ("application.view", "from ..wire.handshake import parse_upgrade\nfrom flask import Flask"),
        ("application.sockets", "if TYPE_CHECKING:\n    from ..testing import SocketsClient"),
        ("application.sockets", "def f():\n    from ..testing import SocketsClient"),
        ("servers.gunicorn", "import gevent\nfrom .gevent import WebSocketHandler"),
        ("brokers.redis.broker", "from .client import Client\nimport_redis = None"),
        ("__init__", "from .application.sockets import Sockets\nfrom ._version import x"),
    ],
)
def test_an_import_that_the_table_has_is_let_pass(module: str, source: str) -> None:
    assert offences(module, source) == []
