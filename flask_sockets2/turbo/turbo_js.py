"""Which turbo.js a page loads.

The first of these that there is:

1. ``turbo(url=…)`` in the template,
2. ``TURBO_JS_URL`` of the application, for all its pages,
3. the CDN, for ``turbo(version=…)`` with a version that is not ours; without a hash, as we know
   none of it, and with ``version=None`` the newest,
4. the copy in the installed package, which wheels carry, from the application itself,
5. the CDN with the version pinned and the hash that the browser checks (W3C Subresource Integrity).

All but the first two are the UMD build: of turbo.js' two builds the one that sets ``window.Turbo``
in a classic script.

Differences from Turbo-Flask: a copy of our own comes before the CDN; what stands in an attribute is
escaped; a falsy ``version`` other than None, as an undefined variable of a template
(``{{ turbo(app) }}`` was a frequent mistake), means ours.
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
"""Where the application serves this package's files, each under its :func:`hashed_name`."""

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

    :param version: of turbo.js on the CDN; None = the newest.
    :param url: of another copy.
    :param nonce: of the page's Content-Security-Policy.
    :param module: ``type="module"``, as Turbo-Flask's where there is no connection; such a script
        runs after the page has been read.
    :raises TypeError: when the version is neither a text nor None.
    """
    url, integrity = _source(app, version, url)
    # Turbo runs the scripts of an error page, and those in a body, at each visit: a second Turbo.
    tag = Markup('<script type="module"' if module else '<script data-turbo-eval="false"')
    tag += Markup(' src="{}"').format(url)
    if integrity:
        tag += Markup(' integrity="{}" crossorigin="anonymous"').format(integrity)
    if nonce:
        tag += Markup(' nonce="{}"').format(nonce)
    return tag + Markup("></script>")


def _source(app: Flask, version: str | None, url: str | None) -> tuple[str, str]:
    """The URL to load, and the hash that the browser shall check, possibly empty."""
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
    """Say once what the pages of an application depend on for want of a copy of turbo.js."""
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
    """Return the copy of turbo.js in the installed package, None where it was built without."""
    return _VENDORED if _VENDORED.is_file() else None


@cache
def hashed_name(path: Path) -> str:
    """Return the name under which a file is served: another content, another name.

    The file is read once in a process.

    :param path: of a file of this package.
    :returns: ``turbo.es2017-umd-0123456789abcdef.js``, say.
    :raises OSError: when it cannot be read.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{path.stem}-{digest[:16]}{path.suffix}"


def local_url(app: Flask, name: str) -> str:
    """Return the path in this application's URL of a file that it serves below ``PREFIX``.

    In a request it holds the prefix that the application is mounted at (``SCRIPT_NAME``), else
    ``APPLICATION_ROOT``.
    """
    if has_request_context():
        root = request.script_root
    else:
        root = app.config["APPLICATION_ROOT"].rstrip("/")
    return f"{root}{PREFIX}{name}"
