"""What the targets are given: seeds of the corpus, changed here and there, and anything at all.

A seed is a list of texts, one for each parameter of its target. Bytes are written as the characters
of their numbers (ISO 8859-1), so that the corpus is JSON and can be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")

# What ends a line, a field, an attribute or an element somewhere, and what only looks like it.
TOKENS = (
    *("\r\n", "\n", "\r", "\0", "\r\n\r\n", "\n\n", "\t", " ", "\x0b", "\x0c", "\x1b", "\x7f"),
    *("\x85", "\xa0", "\xff", ":", ": ", ",", ";", "=", '"', "'", "<", ">", "&", "&#34;", "\\"),
    *("%", "%0a", "%3A", "%00", "data:", "id:1", "</template>", "<turbo-stream>", "-->", "http://"),
    *("\x81\x80", "\x88\x82", "\xc1\xfe", "\x89\xff", "0", "-1", "9" * 20, "a" * 130),
)
WIDE = ("\u2028", "\ufeff", "é", "κ", "\u202e", "\U0001f600", "\ud800")


def seeds_of(target: str) -> list[tuple[str, ...]]:
    """Return the seeds of a target."""
    return [tuple(seed) for seed in json.loads((CORPUS / f"{target}.json").read_text())]


def _changed(text: str, changes: list[tuple[int, int, str]]) -> str:
    for place, length, put in changes:
        place %= len(text) + 1
        text = text[:place] + put + text[place + length :]
    return text


def inputs(target: str, *, narrow: bool) -> st.SearchStrategy[tuple[str, ...]]:
    """Return a strategy of what a target is given.

    :param narrow: characters stand for bytes.
    """
    characters: Any = st.characters(max_codepoint=255) if narrow else st.characters()
    tokens = st.sampled_from(TOKENS if narrow else TOKENS + WIDE)
    anything = st.one_of(tokens, st.text(characters, max_size=8))
    change = st.tuples(st.integers(0, 2000), st.sampled_from((0, 0, 0, 1, 1, 2, 8, 40)), anything)
    seeds = seeds_of(target)

    def near(seed: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
        """All of it changed, or one text of it: what else is there may have to be good."""
        changed = [
            st.builds(_changed, st.just(text), st.lists(change, min_size=1, max_size=4))
            for text in seed
        ]
        kept = [st.just(text) for text in seed]
        ones = [st.tuples(*kept[:i], changed[i], *kept[i + 1 :]) for i in range(len(seed))]
        return st.one_of(st.tuples(*changed), *ones)

    wild = st.lists(anything, max_size=12).map("".join)
    far = st.tuples(*[wild] * len(seeds[0]))
    nearly = st.sampled_from(seeds).flatmap(near)
    return st.one_of(nearly, nearly, far)
