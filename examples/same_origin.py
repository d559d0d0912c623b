"""Protect the examples' forms against cross-site requests. Most examples have no login.

A page of another site can submit a form to this one, but the browser adds the page's origin. In
your application use Flask-WTF's CSRFProtect, which checks a token in each form.
"""

from flask import abort, request


def refuse_other_origins():
    """Register as ``before_request``. Behind a proxy, ProxyFix must set scheme and host."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    origin = request.headers.get("Origin")  # scripts send no Origin
    if origin is not None and origin != request.host_url.rstrip("/"):
        abort(403, "this form belongs to another site")
