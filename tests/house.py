"""Figures of how easily a stranger finds the way in the package: ``python -m tests.house``.

The program also counts another checkout, to compare: ``python -m tests.house /path/to/clone``.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

NAME = "flask_sockets2"

_LITERAL = re.compile(r"``.*?``|:\w+:`.*?`|https?://\S+")
_OUTSIDE_PROSE = re.compile(r"\s*(\.\. |[-=~^+|]{3})")  # directives, rules of tables
_CODE = re.compile(r"\s*\.\. (code|literalinclude|image|toctree|raw|math)")
_LITERAL_BLOCK = re.compile(r"(?!\s*\.\. ).*::\s*")
_FIELD = re.compile(r"\s*:\w+( \w+)?: ?")  # as ":param name:"
_SETTLED = frozenset({"if", "it", "where", "who", "what"})


class House:
    """A checkout of the project.

    :param root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root / NAME

    # -- modules ---------------------------------------------------------------------------

    @cached_property
    def modules(self) -> dict[str, ast.Module]:
        """Parsed modules by name within the package: ``wire.frames``, ``wire``, ``__init__``."""
        found = {}
        for path in sorted(self.package.rglob("*.py")):
            parts = path.relative_to(self.package).with_suffix("").parts
            parts = parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts
            found[".".join(parts)] = ast.parse(path.read_text())
        return found

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """What each module imports of the package, also in functions and for types."""
        return {
            name: set(self._imports(name, tree)) - {name} for name, tree in self.modules.items()
        }

    def _imports(self, importer: str, tree: ast.Module) -> Iterator[str]:
        full = [NAME] if importer == "__init__" else [NAME, *importer.split(".")]
        inside = importer == "__init__" or (self.package / Path(*full[1:])).is_dir()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from self._own(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = full[: len(full) - node.level + inside] if node.level else []
                start = ".".join([*base, *filter(None, [node.module])])
                yield from self._own(f"{start}.{alias.name}" for alias in node.names)

    def _own(self, names: Iterable[str]) -> Iterator[str]:
        for full in names:
            package, _, name = full.partition(".")
            while package == NAME and name and name not in self.modules:
                name = name.rpartition(".")[0]  # a name in a module
            if package == NAME:
                yield name or "__init__"

    # -- rooms -----------------------------------------------------------------------------

    @cached_property
    def rooms(self) -> dict[str, set[str]]:
        """Folders and top modules, each with those that it imports; not ``__init__``."""
        arrows: dict[str, set[str]] = {}
        for importer, imported in self.imports.items():
            room = importer.partition(".")[0]
            arrows.setdefault(room, set()).update(name.partition(".")[0] for name in imported)
        arrows.pop("__init__", None)
        return {room: arrows[room] - {room, "__init__"} for room in arrows}

    @property
    def top_modules(self) -> list[str]:
        return sorted(path.stem for path in self.package.glob("*.py"))

    @property
    def floors(self) -> int:
        """Length of the longest way down."""
        heights: dict[str, int] = {}
        for room in TopologicalSorter(self.rooms).static_order():
            heights[room] = 1 + max((heights[below] for below in self.rooms[room]), default=0)
        return max(heights.values())

    @property
    def circle(self) -> list[str]:
        """Modules that import each other in a circle, types counted; a package may import its own
        modules."""
        graph = {
            importer: {name for name in imported if not name.startswith(f"{importer}.")}
            for importer, imported in self.imports.items()
            if importer != "__init__"
        }
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as exc:
            return list(exc.args[1])
        return []

    # -- names -----------------------------------------------------------------------------

    @property
    def double_names(self) -> dict[str, list[str]]:
        """Names of classes at the top of more than one module, with the modules."""
        homes: dict[str, list[str]] = {}
        for module, tree in self.modules.items():
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    homes.setdefault(node.name, []).append(module)
        return {name: where for name, where in sorted(homes.items()) if len(where) > 1}

    # -- words and lines -------------------------------------------------------------------

    def prose(self) -> Iterator[str]:
        """Docstrings and comments of the package."""
        for path in sorted(self.package.rglob("*.py")):
            source = path.read_text()
            yield from _docstrings(ast.parse(source))
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.COMMENT:
                    yield token.string.lstrip("#: ")

    def pages(self) -> dict[str, str]:
        """Prose of README and documentation, by file."""
        paths = [
            *self.root.glob("*.rst"),
            *(self.root / "docs").rglob("*.rst"),
        ]
        return {
            str(path.relative_to(self.root)): page_prose(path.read_text()) for path in sorted(paths)
        }

    def lines(self, folder: str, pattern: str = "*.py") -> int:
        """Lines of all files of a folder."""
        paths = (self.root / folder).rglob(pattern)
        return sum(path.read_bytes().count(b"\n") for path in paths if "_build" not in path.parts)

    def figures(self) -> dict[str, object]:
        """All that can be counted, by what it is."""
        code = per_thousand(self.prose())
        pages = per_thousand(self.pages().values())
        product, tests = self.lines(NAME), self.lines("tests") + self.lines("trials")
        return {
            "modules at the top": len(self.top_modules),
            "rooms": len(self.rooms),
            "floors": self.floors,
            "arrows": sum(map(len, self.rooms.values())),
            "modules in a circle": " -> ".join(self.circle) or "none",
            "class names that occur twice": ", ".join(self.double_names) or "none",
            "docstrings and comments, per 1,000 words": shown(code),
            "README and documentation, per 1,000 words": shown(pages),
            "lines of the package": product,
            "lines of README and documentation": self.lines("docs", "*.rst")
            + sum(path.read_bytes().count(b"\n") for path in self.root.glob("*.rst")),
            "lines of tests and trials": tests,
            "lines of tests per line of the package": f"{tests / product:.2f}",
        }


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield docstrings, also the strings behind attributes."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else ():
            value = each.value if isinstance(each, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield page_prose(value.value)


def page_prose(text: str) -> str:
    """Return a page of reStructuredText without code, directives and rules of tables."""
    kept = []
    code: int | None = None  # the indent above which lines are code
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if code is not None and (not line.strip() or indent > code):
            continue
        is_code = _CODE.match(line) or _LITERAL_BLOCK.fullmatch(line)
        code = indent if is_code else None
        if not _OUTSIDE_PROSE.match(line):
            kept.append(_FIELD.sub("", line))
    return "\n".join(kept)


def per_thousand(texts: Iterable[str]) -> dict[str, float]:
    """Return how often some words occur in 1,000 words."""
    words = list(chain.from_iterable(map(_words, texts)))
    counts = Counter(word for word in words if word in _SETTLED)
    return {word: 1000 * counts[word] / max(len(words), 1) for word in sorted(_SETTLED)}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", _LITERAL.sub(" ", text).lower())


def shown(frequencies: dict[str, float]) -> str:
    return ", ".join(f"{word} {value:.1f}" for word, value in frequencies.items())


def main() -> None:
    roots = [Path(argument) for argument in sys.argv[1:]] or [Path(__file__).parents[1]]
    for root in roots:
        for what, figure in House(root).figures().items():
            print(f"{what:45} {figure}")


if __name__ == "__main__":
    main()
