"""The configuration of Sphinx for the site of these pages; ``make docs`` builds it.

The pages can also be read as files: they name each other as ``docs/channels.rst``, and the examples
as ``examples/chat.py``. Both become links in the site. The build needs no network.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from pygments.lexers import BashLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flask_sockets2 import __version__  # noqa: E402

project = "flask_sockets2"
author = "the flask_sockets2 authors"
copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's default underlines module names
html_title = f"flask_sockets2 {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_copy_source = False
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_display_short_literal_types = True

# A broken link is an error. Exceptions: other projects, whose inventories the build would have to
# fetch, and types in signatures that come from internal modules.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!flask_sockets2\b).*"),
    ("py:.*", r"flask_sockets2\.\w+\.[a-z_.]+[A-Z]\w*"),
    ("py:.*", r"flask_sockets2\.(brokers|channels|connection|fanout|sockets|stats|typing)\.\w+"),
]


class PageLinks(SphinxTransform):
    """Turn the names of pages into links: ``docs/channels.rst`` becomes "Channels".

    Also the names of files that a page shows in full: ``examples/chat.py``, ``SECURITY.md``.
    """

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            named = re.fullmatch(r"docs/([\w/-]+)\.rst|(CHANGES)\.rst", text)
            if named is not None:
                page = f"/{named[1] or named[2].lower()}"
                literal.replace_self(self.link(nodes.inline("", text), "doc", page))
            elif re.fullmatch(r"examples/[\w/]+\.(py|js|html)|SECURITY\.md", text):
                literal.replace_self(self.link(literal.deepcopy(), "ref", text.lower()))

    def link(self, shown: nodes.Node, kind: str, target: str) -> nodes.Node:
        return addnodes.pending_xref(
            "",
            shown,
            refdomain="std",
            reftype=kind,
            reftarget=target,
            refdoc=self.env.docname,
            refexplicit=kind == "ref",
            refwarn=True,
        )


LANGUAGES = {".py": "python", ".js": "javascript", ".html": "html+jinja"}


class Files(Directive):
    """Show whole files, given one a line, with their names as captions and labels."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = [line for path in self.content for line in self.block(path)]
        self.state_machine.insert_input(lines, self.state_machine.document["source"])
        return []

    def block(self, path: str) -> list[str]:
        options = {"name": path, "caption": path, "language": LANGUAGES[Path(path).suffix]}
        lines = [f"   :{name}: {value}" for name, value in options.items()]
        return [f".. literalinclude:: ../{path}", *lines, ""]


class Commands(Directive):
    """Show the help of a command group: ``.. commands:: flask_sockets2.tools.cli:sockets_cli``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        group = getattr(import_module(module), name)
        found: list[nodes.Node] = []
        with click.Context(group, info_name=f"flask {group.name}") as above:
            for each in group.list_commands(above):
                command = group.get_command(above, each)
                section = nodes.section(ids=[nodes.make_id(f"flask {group.name} {each}")])
                section += nodes.title("", f"flask {group.name} {each}")
                with click.Context(
                    command, info_name=each, parent=above, max_content_width=88
                ) as context:
                    text = command.get_help(context)
                section += nodes.literal_block(text, text, language="text")
                found.append(section)
        return found


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(PageLinks)
    app.add_lexer("console", BashLexer)  # Sphinx's own shows lines without a prompt as output
    app.add_directive("commands", Commands)
    app.add_directive("files", Files)
    return {"parallel_read_safe": True}
