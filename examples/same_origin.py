"""Refuses what pages of other sites send: most examples have no login, and anybody may post there.

A browser sends a form of any page to any site. What it sends along is the origin of that page. In
an application with forms of its own, Flask-WTF's CSRFProtect does the same by a token in each form.
"""

from flask import abort, request


def refuse_other_origins():
    """For ``before_request``. Behind a proxy it needs ProxyFix, which knows scheme and host."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    origin = request.headers.get("Origin")  # scripts send none
    if origin is not None and origin != request.host_url.rstrip("/"):
        abort(403, "this form belongs to another site")
