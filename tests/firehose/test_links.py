"""Links as a header field has them: RFC 8288, and what never gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_sockets2.firehose import Link, link
from flask_sockets2.firehose.links import joined, link_of, parse


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (link("/a.css", as_="style"), "</a.css>; rel=preload; as=style"),
        (link("/a.css", **{"as": "style", "rel": "preload"}), "</a.css>; as=style; rel=preload"),
        (link("/b.js", "nopush", rel="preload"), "</b.js>; rel=preload; nopush; as=script"),
        # An attribute as Flask-Firehose took it, too: by position, in its own words.
        (link("/a", "rel=preload", "as=style"), "</a>; rel=preload; as=style"),
        (link("/a", 'as="style"', as_="script"), "</a>; rel=preload; as=script"),
        (link("/f", "as=font"), "</f>; rel=preload; as=font; crossorigin"),
        (link("/a", "rel=x", "title=a=b"), '</a>; rel=x; title="a=b"'),
        (link("/f.woff2"), "</f.woff2>; rel=preload; as=font; crossorigin"),
        (
            link("/f.woff2", crossorigin="use-credentials"),
            "</f.woff2>; rel=preload; crossorigin=use-credentials; as=font",
        ),
        (link("/data", as_="fetch"), "</data>; rel=preload; as=fetch; crossorigin"),
        (link("/m.js", rel="modulepreload"), "</m.js>; rel=modulepreload"),
        # Modules, by their ending or by the type that their element has.
        (link("/m.mjs"), "</m.mjs>; rel=modulepreload"),
        (link("/m.MJS?v=1#x"), "</m.MJS?v=1#x>; rel=modulepreload"),
        (link("/m.mjs", as_="script"), "</m.mjs>; rel=modulepreload; as=script"),
        (link("/m.mjs", crossorigin=True), "</m.mjs>; rel=modulepreload; crossorigin"),
        (link("/m.js", type="module"), "</m.js>; rel=modulepreload"),
        (link("/m.js", type_="Module"), "</m.js>; rel=modulepreload"),
        (link("/m.js", 'type="module"'), "</m.js>; rel=modulepreload"),
        (link("/m", "type=module", "as=script"), "</m>; as=script; rel=modulepreload"),
        # A preload of a type that no browser knows is of no use.
        (link("/m.js", rel="preload", type="module"), "</m.js>; rel=modulepreload"),
        # What is said stays.
        (link("/m.mjs", rel="preload"), "</m.mjs>; rel=preload; as=script"),
        (link("/m.mjs", rel="prefetch"), "</m.mjs>; rel=prefetch"),
        (link("/m.mjs", as_="fetch"), "</m.mjs>; rel=preload; as=fetch; crossorigin"),
        (
            link("/m.js", type="text/javascript"),
            '</m.js>; rel=preload; type="text/javascript"; as=script',
        ),
        (link("/m.js", rel="x", type="module"), "</m.js>; rel=x; type=module"),
        (link("/x", rel="next", title=None, hidden=False), "</x>; rel=next"),
        (link("/a.CSS?v=1#x"), "</a.CSS?v=1#x>; rel=preload; as=style"),
        # Attributes that are no tokens are quoted (RFC 8288 §3).
        (link("/a", type_="text/css"), '</a>; rel=preload; type="text/css"'),
        (link("/a", rel="x", media="(min-width: 1px)"), '</a>; rel=x; media="(min-width: 1px)"'),
        (link("/a", rel="x", title='a "b" \\c'), '</a>; rel=x; title="a \\"b\\" \\\\c"'),
        (link("/a", rel="x", nonce=""), '</a>; rel=x; nonce=""'),
        (link("/a", rel="preload stylesheet"), '</a>; rel="preload stylesheet"'),
        # A URI holds these as they are (RFC 3986 §2.2); encoded, they would be another URL.
        (link("/a,b;c.css", as_="style"), "</a,b;c.css>; rel=preload; as=style"),
        (link("/a%20b.css"), "</a%20b.css>; rel=preload; as=style"),
        # And these not.
        (link("/a b.css"), "</a%20b.css>; rel=preload; as=style"),
        (link("/ü.css"), "</%C3%BC.css>; rel=preload; as=style"),
        (link('/<a>"b".css'), "</%3Ca%3E%22b%22.css>; rel=preload; as=style"),
    ],
)
def test_a_link_is_written_as_the_rfc_has_it_and_read_again(made: Link, text: str) -> None:
    assert str(made) == text
    assert parse(text) == [made]


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n", "\0", "\t", "\x7f", "\x1b"])
def test_no_control_character_gets_into_a_header(character: str) -> None:
    text = f"/a{character}b.css"
    with pytest.raises(ValueError, match=r"url_for\(\), or encode its parts"):
        link(text, as_="style")
    with pytest.raises(ValueError, match="visible ASCII characters"):
        link("/a.css", as_=text)
    with pytest.raises(ValueError, match="letters, digits and hyphens"):
        link("/a.css", **{text: "x"})
    with pytest.raises(ValueError, match="letters, digits and hyphens"):
        link("/a.css", text)
    with pytest.raises(ValueError, match="visible ASCII characters"):
        link("/a.css", f"as={text}")


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_given_is_refused_or_one_link_of_visible_characters(
    url: str, name: str, value: str
) -> None:
    try:
        made = link(url, **{f"x{name}": value})
    except ValueError:
        return
    text = str(made)
    assert text.isascii()
    assert text.isprintable()
    assert parse(f"<before>; rel=x, {text}, <after>")[1] == made


@pytest.mark.parametrize("name", ["", "a b", "a;b", "a,b", "ü", '"', "=", "=x", "a =x"])
def test_a_name_is_a_token(name: str) -> None:
    with pytest.raises(ValueError):
        link("/a.css", name)


@pytest.mark.parametrize("url", ["", "/\ud800"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        link(url)


def test_an_attribute_holds_ascii() -> None:
    with pytest.raises(ValueError, match="visible ASCII"):
        link("/a", title="ü")


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("/static/app.css", "</static/app.css>; rel=preload; as=style"),
        ("https://cdn.example.com", "<https://cdn.example.com>; rel=preconnect"),
        ("https://cdn.example.com/", "<https://cdn.example.com/>; rel=preconnect"),
        ("/a.mjs", "</a.mjs>; rel=modulepreload"),
        ("</a>; type=module", "</a>; rel=modulepreload"),
        ("</a.js>; rel=preload; as=script; type=module", "</a.js>; rel=modulepreload; as=script"),
        ("//cdn.example.com/a.js", "<//cdn.example.com/a.js>; rel=preload; as=script"),
        ("</data>; rel=preload; as=fetch", "</data>; rel=preload; as=fetch; crossorigin"),
        ('</x>; rel="preconnect"; crossorigin', "</x>; rel=preconnect; crossorigin"),
        (link("/x", as_="image"), "</x>; rel=preload; as=image"),
    ],
)
def test_a_link_may_be_named_by_its_url(what: str | Link, text: str) -> None:
    assert str(link_of(what)) == text


@pytest.mark.parametrize("what", ["/data", "/", "app", "</data>; rel=preload", "/a.unknown"])
def test_a_preload_that_no_browser_can_use_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"as=…"):
        link_of(what)


@pytest.mark.parametrize("what", ["", "<", "</a> x", "</a.css>, </b.css>", "</a\n.css>; as=style"])
def test_what_is_no_link_is_refused(what: str) -> None:
    with pytest.raises(ValueError):
        link_of(what)


def test_an_attribute_that_is_empty_is_none() -> None:
    """RFC 8288 appendix B.2: nor is the value that has it in the way of ours."""
    assert parse("</a>; ;rel=x;;, </b>;") == [Link("/a", (("rel", "x"),)), Link("/b")]
    value, _ = joined(["</b>;"], [link("/a", rel="x")], 1000)
    assert parse(value) == [Link("/b"), Link("/a", (("rel", "x"),))]
    with pytest.raises(ValueError):
        parse("</a>; </b>")


def test_a_list_is_read() -> None:
    first, second, third = parse(
        '</a,b>; rel="preload"; title="a \\"; , <c>" ,, <b>;REL=next;rel=prev , <c>'
    )
    assert (first.url, first.get("rel"), first.get("title")) == ("/a,b", "preload", 'a "; , <c>')
    assert (second.url, second.get("rel")) == ("b", "next")  # the first counts, RFC 8288 §3.3
    assert (third.url, third.get("rel")) == ("c", None)


def test_what_is_there_stays_and_nothing_comes_twice() -> None:
    existing = ['</a.css>; as=style; rel="preload"; x=1, ', "not <a link"]
    links = [link("/a.css"), link("/b.css"), link("/b.css", media="print"), link("/a.css", rel="x")]
    value, left_out = joined(existing, links, 1000)
    assert left_out == []
    assert value == (
        '</a.css>; as=style; rel="preload"; x=1, not <a link, '
        "</b.css>; rel=preload; as=style, </a.css>; rel=x"
    )


def test_what_is_too_long_is_left_out() -> None:
    links = [link("/a.css"), link("/" + "b" * 100 + ".css"), link("/c.css")]
    value, left_out = joined((), links, 80)
    assert value == "</a.css>; rel=preload; as=style, </c.css>; rel=preload; as=style"
    assert left_out == [links[1]]
