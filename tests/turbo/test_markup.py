"""Markup of streams: byte for byte Turbo-Flask's, and what that does not have."""

from __future__ import annotations

from typing import Any

import pytest
from markupsafe import Markup

from flask_sockets2.turbo.markup import joined, key_of, stream_tag, with_sender


@pytest.mark.parametrize(
    "action", ["append", "prepend", "replace", "update", "before", "after", "remove"]
)
def test_a_tag_has_the_bytes_of_turbo_flask(action: str) -> None:
    made = stream_tag(action, "<b>&amp;</b>", target="todos")
    expected = f'<turbo-stream action="{action}" target="todos">'
    assert made == f"{expected}<template><b>&amp;</b></template></turbo-stream>"
    assert isinstance(made, Markup)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (
            stream_tag("remove", targets=".done"),
            '<turbo-stream action="remove" targets=".done"><template></template></turbo-stream>',
        ),
        (stream_tag("refresh"), '<turbo-stream action="refresh"></turbo-stream>'),
        (
            stream_tag("refresh", request_id="1-2", scroll="preserve"),
            '<turbo-stream action="refresh" request-id="1-2" scroll="preserve"></turbo-stream>',
        ),
        (stream_tag("log", None), '<turbo-stream action="log"></turbo-stream>'),
        (
            stream_tag("play", None, target="x", loud=True, soft=False, none=None, at=0),
            '<turbo-stream action="play" target="x" loud at="0"></turbo-stream>',
        ),
        (
            stream_tag("update", 4, target=5),
            '<turbo-stream action="update" target="5"><template>4</template></turbo-stream>',
        ),
    ],
)
def test_a_tag_looks_as_its_parts_say(tag: Markup, expected: str) -> None:
    assert tag == expected


@pytest.mark.parametrize("bad", ["a\"b'c<d>&e", Markup("a\"b'c<d>&e")])
def test_what_stands_in_an_attribute_cannot_leave_it(bad: str) -> None:
    escaped = "a&#34;b&#39;c&lt;d&gt;&amp;e"
    assert f'target="{escaped}"' in stream_tag("update", "", target=bad)
    assert f'targets="{escaped}"' in stream_tag("update", "", targets=bad)
    assert f'title="{escaped}"' in stream_tag("update", "", target="x", title=bad)
    assert f'action="{escaped}"' in stream_tag(bad, "", target="x")


@pytest.mark.parametrize("name", ["", "on click", 'a"', "a>", "a=b", "1", "_a", "ä"])
def test_what_is_no_name_of_an_attribute_is_refused(name: str) -> None:
    attributes: dict[str, Any] = {name: "x"}
    with pytest.raises(ValueError, match="name of an attribute"):
        stream_tag("update", "", target="x", **attributes)


def test_a_stream_has_one_kind_of_target() -> None:
    with pytest.raises(TypeError, match="either target="):
        stream_tag("update", "", target="a", targets="b")


def test_streams_are_joined_whatever_holds_them() -> None:
    assert joined("<a>") == "<a>"
    assert type(joined(Markup("<a>"))) is str
    assert joined(["<a>", Markup("<b>")]) == "<a><b>"
    assert joined(each for each in ("<a>", "<b>")) == "<a><b>"


@pytest.mark.parametrize(
    ("markup", "key"),
    [
        (stream_tag("replace", "<p>", target="load"), "replace load"),
        (stream_tag("update", "<p>", target="load", method="morph"), "update load"),
        (stream_tag("update", "<p>", target="a\"<b>'&c"), "update a\"<b>'&c"),
        (stream_tag("replace", "<p>", target="ü" * 248), "replace " + "ü" * 248),
        (stream_tag("replace", "<p>", target="ü" * 249), ""),
        (stream_tag("replace", "<turbo-stream-from>", target="load"), "replace load"),
        (stream_tag("replace", "<turbo-stream>", target="load"), ""),
        (stream_tag("replace", "<p>", targets=".load"), ""),
        (stream_tag("append", "<p>", target="load"), ""),
        (stream_tag("replace", "1", target="a") + stream_tag("replace", "2", target="b"), ""),
        (stream_tag("refresh"), ""),
        ("<p>", ""),
        ("", ""),
    ],
)
def test_only_what_a_newer_message_replaces_has_a_key(markup: str, key: str) -> None:
    assert key_of(markup) == key
    assert len(key.encode()) <= 1024


def test_a_sender_is_named_in_the_first_tag() -> None:
    markup = str(stream_tag("append", "<turbo-stream>", target="a") + stream_tag("refresh"))
    marked = with_sender(markup, 'x"\\1')
    assert marked == markup.replace("<turbo-stream ", '<turbo-stream data-sender="x&#34;\\1" ', 1)
    assert with_sender("<turbo-stream-from>", "1") == "<turbo-stream-from>"
    commented = "<!-- a <turbo-stream> -->\ntext <TURBO-STREAM action='x'>"
    marked = commented.replace("STREAM", 'STREAM data-sender="1"')
    assert with_sender(commented, "1") == marked
