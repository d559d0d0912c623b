"""Selection of the turbo.js that a page loads.

The first available source is used:

1. ``turbo(url=…)`` in the template,
2. ``TURBO_JS_URL`` of the application, for all its pages,
3. the CDN, if ``turbo(version=…)`` names another version than the package's, or None for the
   newest; the browser checks no hash, since none is known,
4. the copy in the installed package, which wheels contain, served by the application,
5. the CDN with the version pinned and the hash that the browser checks (W3C Subresource Integrity).

The last three are the UMD build, which sets ``window.Turbo`` in a classic script.

Differences from Turbo-Flask: the installed copy comes before the CDN. Attributes are escaped. A
falsy ``version`` other than None means the package's version: ``{{ turbo(app) }}`` was a frequent
mistake, and passes an undefined variable.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path
from urllib.parse import quote

from flask import Flask, has_request_context, request
from markupsafe import Markup

from ..settings import read
from .npm import INTEGRITY, PACKAGE, UMD, VERSION
from .settings import TurboSettings

__all__ = ["VERSION", "hashed_name", "library_tag", "local_url", "vendored_path"]

logger = logging.getLogger("flask_sockets2.turbo")

CDN = "https://cdn.jsdelivr.net/npm"

PREFIX = "/_flask_sockets2/"
"""Path below which the application serves this package's files, by :func:`hashed_name`."""

_WARNED = "flask_sockets2.turbo.warned_of_cdn"  # in app.extensions

_VENDORED = Path(__file__).parent / "vendored" / UMD


def library_tag(
    app: Flask,
    version: str | None = VERSION,
    url: str | None = None,
    nonce: str | None = None,
    *,
    module: bool = False,
) -> Markup:
    """Return the script element that loads turbo.js.

    :param version: version of turbo.js on the CDN, None for the newest.
    :param url: URL of another copy.
    :param nonce: nonce of the page's Content-Security-Policy.
    :param module: whether to add ``type="module"``, as Turbo-Flask does without a connection; the
        script then runs after the page is parsed.
    :raises TypeError: if the version is neither a string nor None.
    """
    url, integrity = _source(app, version, url)
    # Turbo runs scripts of error pages and bodies at each visit, which would start a second Turbo.
    tag = Markup('<script type="module"' if module else '<script data-turbo-eval="false"')
    tag += Markup(' src="{}"').format(url)
    if integrity:
        tag += Markup(' integrity="{}" crossorigin="anonymous"').format(integrity)
    if nonce:
        tag += Markup(' nonce="{}"').format(nonce)
    return tag + Markup("></script>")


def _source(app: Flask, version: str | None, url: str | None) -> tuple[str, str]:
    """Return the URL to load, and the hash that the browser checks, empty for no check."""
    url = url or read(TurboSettings, app.config).js_url
    if url:
        return url, ""
    if version is None:
        return _cdn_url(""), ""
    version = version or VERSION
    if not isinstance(version, str):
        raise TypeError(
            f"expected a version of turbo.js such as {VERSION!r}, got {type(version).__name__}; "
            "templates call turbo() without the application"
        )
    if version != VERSION:
        return _cdn_url(f"@{quote(version, safe='')}"), ""
    vendored = vendored_path()
    if vendored is not None:
        return local_url(app, hashed_name(vendored)), ""
    _warn_of_cdn(app)
    return _cdn_url(f"@{VERSION}"), INTEGRITY[UMD]


def _warn_of_cdn(app: Flask) -> None:
    """Warn once per application that pages load turbo.js from the CDN, for lack of a copy."""
    if _WARNED in app.extensions:
        return
    app.extensions[_WARNED] = True
    logger.warning(
        "this installation has no copy of turbo.js, as it was built without npm, so pages load it "
        "from %s; where browsers cannot reach that, nothing that is pushed is shown. Run 'flask "
        "turbo vendor', and set TURBO_JS_URL as it says",
        CDN,
    )


def _cdn_url(version: str) -> str:
    return f"{CDN}/{PACKAGE}{version}/dist/{UMD}"


def vendored_path() -> Path | None:
    """Return the path of turbo.js in the installed package, None if there is no copy."""
    return _VENDORED if _VENDORED.is_file() else None


@cache
def hashed_name(path: Path) -> str:
    """Return the name under which a file is served, which changes with the file's content.

    Each process reads the file once.

    :param path: path of a file of this package.
    :returns: name, such as ``turbo.es2017-umd-0123456789abcdef.js``.
    :raises OSError: if the file cannot be read.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{path.stem}-{digest[:16]}{path.suffix}"


def local_url(app: Flask, name: str) -> str:
    """Return the URL path of a file that the application serves below ``PREFIX``.

    In a request the path begins with the prefix that the application is mounted at
    (``SCRIPT_NAME``), else with ``APPLICATION_ROOT``.
    """
    if has_request_context():
        root = request.script_root
    else:
        root = app.config["APPLICATION_ROOT"].rstrip("/")
    return f"{root}{PREFIX}{name}"
