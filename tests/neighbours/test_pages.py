"""What makes or changes pages, and their headers."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

from tests.neighbours.conftest import Cell
from tests.neighbours.visitor import TIMEOUT


def test_flask_caching(cell: Cell) -> None:
    visitor = cell.start("flask_caching_views")
    visitor.finds_all_four_working()
    assert visitor.get("/cached").text == visitor.get("/cached").text == "call 1"
    with visitor.websocket("/answers") as ws:
        for question, answer in (("a", "a: call 2"), ("a", "a: call 2"), ("b", "b: call 3")):
            ws.send(question)
            assert ws.recv(timeout=TIMEOUT) == answer
    ann, bob = visitor.another(), visitor.another()
    ann.post("/login/ann")
    bob.post("/login/bob")
    # A page that is nobody's comes out of the cache with an old position, and gets what it lacks.
    html = ann.get("/cached/public").text
    visitor.says("since then")
    with bob.page("/cached/public") as page:
        assert page.html == html
        assert ">since then<" in page.push()
    # One of ann's is of no use to bob.
    page_of_ann = ann.get("/cached/private")
    assert page_of_ann.headers["Cache-Control"] == "private"
    page_of_bob = bob.get("/cached/private")
    assert page_of_bob.text == page_of_ann.text
    with ann.page(page=page_of_ann.text):
        pass
    bob.page_is_refused(page_of_bob.text, 403)
    visitor.page_is_refused(page_of_bob.text, 403)


def test_flask_compress(cell: Cell) -> None:
    visitor = cell.start("flask_compress_pages")
    visitor.headers["Accept-Encoding"] = "gzip"
    large = visitor.get("/large")
    assert large.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(large.content) == b"a large page " * 1000
    form = visitor.post("/form", Accept="text/vnd.turbo-stream.html")
    assert form.headers["Content-Type"].startswith("text/vnd.turbo-stream.html")
    assert form.headers["Content-Encoding"] is None  # not among COMPRESS_MIMETYPES
    for encodings in ("gzip, deflate, br, zstd", "zstd", "identity"):
        visitor.headers["Accept-Encoding"] = encodings
        with visitor.events() as events:
            assert "content-encoding" not in events.headers
            visitor.says("at once")
            assert events.next(TIMEOUT).data == "at once"
    visitor.finds_all_four_working()


def test_flask_talisman(cell: Cell) -> None:
    visitor = cell.start("flask_talisman_headers")
    answer = visitor.get("/page")
    assert answer.status == 302
    assert answer.headers["Location"].startswith("https://")
    visitor.is_refused("/echo", 302)
    visitor.headers["X-Forwarded-Proto"] = "https"  # as behind a proxy
    page = visitor.get("/page")
    nonce = re.search(r"script-src 'self' 'nonce-([^']+)'", page.headers["Content-Security-Policy"])
    assert nonce is not None
    scripts = re.findall("<script[^>]*>", page.text)
    assert len(scripts) == 2
    assert all(f'nonce="{nonce[1]}"' in script for script in scripts)
    assert visitor.get("/page").headers["Strict-Transport-Security"]
    visitor.finds_all_four_working()


def test_flask_cors(cell: Cell) -> None:
    visitor = cell.start("flask_cors_origins")
    visitor.finds_all_four_working()
    friend = visitor.another(Origin="https://other.example")
    assert friend.get("/").headers["Access-Control-Allow-Origin"] == "https://other.example"
    with friend.events() as events:
        assert events.headers["access-control-allow-origin"] == "https://other.example"
        assert events.headers["access-control-allow-credentials"] == "true"
        visitor.says("news")
        assert events.next(TIMEOUT).data == "news"
    friend.finds_sockets_working()
    stranger = visitor.another(Origin="https://evil.example")
    assert stranger.get("/").headers["Access-Control-Allow-Origin"] is None
    with stranger.events() as events:
        assert events.status == 403
    stranger.is_refused("/echo", 403)


def test_flask_babel(cell: Cell) -> None:
    visitor = cell.start("flask_babel_locales")
    visitor.finds_all_four_working()
    german = visitor.another(Accept_Language="de")
    days = {"en": "Mar 1, 2026", "de": "01.03.2026"}
    assert german.get("/day").text == days["de"]
    assert german.get("/day?lang=en").text == days["en"]
    with german.websocket("/day") as one, german.websocket("/day?lang=en") as other:
        for ws, lang in ((one, "de"), (other, "en"), (one, "de")):
            ws.send("")
            assert ws.recv(timeout=TIMEOUT) == days[lang]
    with visitor.page("/en/page") as english_page, german.page("/de/page") as german_page:
        german.post("/push")
        # To all in the poster's language, and to each in its own.
        for page, lang in ((english_page, "en"), (german_page, "de")):
            pushed = sorted(page.push() for _ in range(2))
            assert pushed == sorted(_update(day) for day in (days["de"], days[lang]))


def _update(text: str) -> str:
    return f'<turbo-stream action="update" target="day"><template>{text}</template></turbo-stream>'


def test_flask_admin(cell: Cell) -> None:
    visitor = cell.start("flask_admin_site")
    visitor.finds_all_four_working()
    assert "shop" in visitor.get("/admin/").text
    if not cell.foreign:
        with visitor.websocket("/orders") as ws:
            assert visitor.post("/admin/order/new/", {"text": "tea"}).status == 302
            assert ws.recv(timeout=TIMEOUT) == "tea"
    assert visitor.get("/admin/order/").status == 200


def test_flask_debugtoolbar(cell: Cell) -> None:
    visitor = cell.start("flask_debugtoolbar_pages")
    visitor.finds_all_four_working()
    page = visitor.get("/page").text
    assert "flDebugToolbarHandle" in page
    form = visitor.post("/form", Accept="text/vnd.turbo-stream.html")
    assert form.text.endswith("</turbo-stream>")
    assert "flDebug" not in form.text
    with visitor.events() as events:
        visitor.says("<body></body>")
        assert events.next(TIMEOUT).data == "<body></body>"
        assert b"flDebug" not in events.raw


def test_flask_assets(cell: Cell, tmp_path: Path) -> None:
    files = tmp_path / "static"
    files.mkdir()
    (files / "one.js").write_text("one()")
    (files / "two.js").write_text("two()")
    visitor = cell.start("flask_assets_bundles", FILES=str(files))
    visitor.finds_all_four_working()
    source = re.search(r'src="(/static/packed.js[^"]*)"', visitor.get("/page").text)
    assert source is not None
    assert visitor.get(source[1]).text.split() == ["one()", "two()"]
    own = re.search(r'src="(/_flask_sockets2/[^"]*)"', visitor.get("/page").text)
    assert own is not None
    assert visitor.get(own[1]).status == 200


def test_flask_vite(cell: Cell, tmp_path: Path) -> None:
    assets = tmp_path / "vite" / "dist" / "assets"
    assets.mkdir(parents=True)
    (assets / "index-1.js").write_text("app()")
    (assets / "index-1.css").write_text("p {}")
    visitor = cell.start("flask_vite_tags", VITE=str(tmp_path / "vite"))
    visitor.finds_all_four_working()
    assert "/_vite/index-1.js" in visitor.get("/page").text
    form = visitor.post("/form", Accept="text/vnd.turbo-stream.html")
    assert form.text.endswith("</turbo-stream>")


def test_flask_htmx(cell: Cell) -> None:
    visitor = cell.start("flask_htmx_partials")
    visitor.finds_all_four_working()
    assert visitor.get("/list").text == "<ol><li>part</li></ol>"
    assert visitor.get("/list", HX_Request="true").text == "<li>part</li>"
    with visitor.websocket("/chat") as ws:
        ws.send('{"text": "<hi>", "HEADERS": {"HX-Request": "true"}}')
        assert ws.recv(timeout=TIMEOUT) == '<p id="chat">&lt;hi&gt;</p>'
