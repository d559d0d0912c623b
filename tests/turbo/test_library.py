"""Which turbo.js a page loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask, render_template_string, url_for
from jinja2 import Undefined
from markupsafe import Markup

from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo import turbo_js as library
from flask_sockets2.turbo.npm import INTEGRITY, UMD
from flask_sockets2.turbo.turbo_js import VERSION, hashed_name, library_tag, vendored_path

CDN = "https://cdn.jsdelivr.net/npm/@hotwired/turbo"
SCRIPT = '<script data-turbo-eval="false"'


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the installed package, as a wheel has one."""
    path = tmp_path / UMD
    path.write_text("var Turbo = {};")
    monkeypatch.setattr(library, "_VENDORED", path)
    return path


@pytest.fixture
def without_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy in the installed package, as in the repository."""
    monkeypatch.setattr(library, "_VENDORED", tmp_path / "vendored" / UMD)


@pytest.mark.usefixtures("without_copy")
def test_without_a_copy_it_is_the_pinned_version_from_the_cdn_with_its_hash(app: Flask) -> None:
    tag = library_tag(app, VERSION, None, None)
    assert tag == (
        f'{SCRIPT} src="{CDN}@{VERSION}/dist/turbo.es2017-umd.js" '
        f'integrity="{INTEGRITY[UMD]}" crossorigin="anonymous"></script>'
    )
    assert isinstance(tag, Markup)


@pytest.mark.usefixtures("without_copy")
def test_the_first_page_without_a_copy_says_what_it_depends_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        app = Flask(__name__)
        app.config["TURBO_JS_URL"] = "/static/turbo.js"
        Turbo(app)
        with app.test_request_context("/"):
            render_template_string("{{ turbo() }}")
            del app.config["TURBO_JS_URL"]
            render_template_string("{{ turbo(version='8.0.1') }}{{ turbo(url='/turbo.js') }}")
            assert caplog.messages == []
            for _ in range(3):
                assert CDN in render_template_string("{{ turbo() }}")
        assert len(caplog.messages) == 1
        assert "Run 'flask turbo vendor', and set TURBO_JS_URL as it says" in caplog.messages[0]
        caplog.clear()


@pytest.mark.usefixtures("copy")
def test_a_page_with_a_copy_says_nothing(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    library_tag(app)
    assert caplog.messages == []


def test_a_copy_in_the_package_comes_before_the_cdn(app: Flask, copy: Path) -> None:
    name = hashed_name(copy)
    assert vendored_path() == copy
    assert library_tag(app) == f'{SCRIPT} src="/_flask_sockets2/{name}"></script>'


@pytest.mark.usefixtures("without_copy")
def test_without_a_copy_there_is_no_path_of_one() -> None:
    assert vendored_path() is None


@pytest.mark.usefixtures("copy")
def test_the_url_of_the_application_comes_before_the_copy(app: Flask) -> None:
    app.config["TURBO_JS_URL"] = "/static/vendor/turbo.js"
    assert library_tag(app) == f'{SCRIPT} src="/static/vendor/turbo.js"></script>'
    assert library_tag(app, "8.0.1") == f'{SCRIPT} src="/static/vendor/turbo.js"></script>'


@pytest.mark.usefixtures("copy")
def test_the_url_in_the_template_comes_before_that_of_the_application(app: Flask) -> None:
    app.config["TURBO_JS_URL"] = "/static/vendor/turbo.js"
    assert library_tag(app, VERSION, "/mine.js", None) == f'{SCRIPT} src="/mine.js"></script>'


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("1.2.3", "@1.2.3"),
        ("latest", "@latest"),
        (None, ""),
        ('"><script>', "@%22%3E%3Cscript%3E"),
        ("8/../evil", "@8%2F..%2Fevil"),
    ],
)
def test_another_version_comes_from_the_cdn_without_a_hash(
    app: Flask, version: str | None, path: str
) -> None:
    expected = f'{SCRIPT} src="{CDN}{path}/dist/turbo.es2017-umd.js"></script>'
    assert library_tag(app, version) == expected


@pytest.mark.usefixtures("without_copy")
@pytest.mark.parametrize("version", ["", Undefined(name="app")])
def test_an_undefined_version_is_ours(app: Flask, version: Any) -> None:
    assert library_tag(app, version) == library_tag(app)


def test_an_application_as_the_version_is_told_to_be_one_too_many(app: Flask) -> None:
    with pytest.raises(TypeError, match=r"got Flask; templates call turbo\(\) without"):
        library_tag(app, app)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_copy")
def test_a_module_is_as_turbo_flask_renders_it_where_there_is_no_connection(app: Flask) -> None:
    """Turbo-Flask 0.8.6: ``Turbo.turbo`` without ``TURBO_WEBSOCKET_ROUTE``."""
    assert library_tag(app, "1.2.3", module=True) == (
        f'<script type="module" src="{CDN}@1.2.3/dist/turbo.es2017-umd.js"></script>'
    )
    assert library_tag(app, module=True).startswith(f'<script type="module" src="{CDN}@{VERSION}')


@pytest.mark.usefixtures("without_copy")
def test_a_nonce_stands_on_the_script(app: Flask) -> None:
    assert library_tag(app, VERSION, "/t.js", "r4nd0m") == (
        f'{SCRIPT} src="/t.js" nonce="r4nd0m"></script>'
    )
    assert library_tag(app, VERSION, None, "r4nd0m").endswith(
        'crossorigin="anonymous" nonce="r4nd0m"></script>'
    )


def test_a_url_and_a_nonce_with_quotes_stay_in_their_attributes(app: Flask) -> None:
    tag = library_tag(app, VERSION, '/t.js?a="1"&b=<2>', '"><b>')
    assert tag == (
        f'{SCRIPT} src="/t.js?a=&#34;1&#34;&amp;b=&lt;2&gt;" nonce="&#34;&gt;&lt;b&gt;"></script>'
    )


def test_a_url_of_the_static_folder_works_from_a_template(app: Flask) -> None:
    app.jinja_env.globals["tag"] = lambda url: library_tag(app, VERSION, url)
    with app.test_request_context("/"):
        page = render_template_string("{{ tag(url_for('static', filename='turbo.js')) }}")
        assert page == f'{SCRIPT} src="{url_for("static", filename="turbo.js")}"></script>'


def test_the_copy_is_below_the_prefix_that_the_application_is_mounted_at(
    app: Flask, copy: Path
) -> None:
    path = f"/_flask_sockets2/{hashed_name(copy)}"
    with app.test_request_context("/", base_url="http://localhost/shop"):
        assert library_tag(app) == f'{SCRIPT} src="/shop{path}"></script>'
    app.config["APPLICATION_ROOT"] = "/shop/"
    with app.app_context():
        assert library_tag(app) == f'{SCRIPT} src="/shop{path}"></script>'


def test_another_content_has_another_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "turbo.umd.js", tmp_path / "b" / "turbo.umd.js"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(str(path))
    assert hashed_name(first) == hashed_name(first) != hashed_name(second)
    stem, _, rest = hashed_name(first).rpartition("-")
    assert stem == "turbo.umd"
    assert len(rest) == len("0123456789abcdef.js")
