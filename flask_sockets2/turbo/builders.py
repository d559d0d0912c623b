"""Turbo Streams as strings: one function for each action of turbo.js."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flask import Response, current_app, render_template

from .markup import MIMETYPE, stream_tag

__all__ = [
    "action",
    "after",
    "append",
    "before",
    "prepend",
    "refresh",
    "remove",
    "replace",
    "stream",
    "update",
]

_MORPHED = frozenset({"replace", "update"})
_OPTIONS = frozenset({"action", "content", "target", "targets", "method"})


def append(content: Any = None, target: Any = None, multiple: bool = False, **options: Any) -> str:
    """Return a stream that adds content at the end of a target.

    :param content: HTML, which is not escaped.
    :param target: id of the element, or a CSS selector if ``multiple`` is True.
    :param multiple: whether the target is a CSS selector.
    :param options: ``targets``: a CSS selector, instead of the target. ``method``: ``"morph"``, for
        ``replace`` and ``update``. ``template``: a template to render instead of content, with all
        other options as its variables. ``attributes``: a dict of further attributes.
    :raises TypeError: if the target or the content is missing, or an option is unknown.
    :raises ValueError: if the action does not support the method.

    ::

        turbo.append("<li>Milk</li>", "todos")
        turbo.append(template="_todo.html", todo=todo, target="todos")
    """
    return _stream("append", content, target, multiple, **options)


def prepend(content: Any = None, target: Any = None, multiple: bool = False, **options: Any) -> str:
    """Return a stream that adds content at the start of a target; see :meth:`append`."""
    return _stream("prepend", content, target, multiple, **options)


def replace(content: Any = None, target: Any = None, multiple: bool = False, **options: Any) -> str:
    """Return a stream that replaces a target; see :meth:`append`."""
    return _stream("replace", content, target, multiple, **options)


def update(content: Any = None, target: Any = None, multiple: bool = False, **options: Any) -> str:
    """Return a stream that replaces the content of a target; see :meth:`append`."""
    return _stream("update", content, target, multiple, **options)


def after(content: Any = None, target: Any = None, multiple: bool = False, **options: Any) -> str:
    """Return a stream that adds content after a target; see :meth:`append`."""
    return _stream("after", content, target, multiple, **options)


def before(content: Any = None, target: Any = None, multiple: bool = False, **options: Any) -> str:
    """Return a stream that adds content before a target; see :meth:`append`."""
    return _stream("before", content, target, multiple, **options)


def remove(
    target: Any = None,
    multiple: bool = False,
    *,
    targets: Any = None,
    attributes: Mapping[str, Any] | None = None,
) -> str:
    """Return a stream that removes a target; see :meth:`append`."""
    return _stream("remove", "", target, multiple, targets=targets, attributes=attributes)


def refresh(
    *,
    request_id: str | None = None,
    method: str | None = None,
    scroll: str | None = None,
) -> str:
    """Return a stream that makes a page load itself again.

    :param request_id: id of the request that caused the refresh; its page ignores the refresh.
    :param method: ``"morph"`` or ``"replace"``; None for the page's own setting.
    :param scroll: ``"preserve"`` or ``"reset"``; None for the page's own setting.
    """
    return str(stream_tag("refresh", request_id=request_id, method=method, scroll=scroll))


def action(
    name: str,
    content: Any = "",
    target: Any = None,
    targets: Any = None,
    *,
    attributes: Mapping[str, Any] | None = None,
    **further: Any,
) -> str:
    """Return a stream with a custom action, which the page defines in ``Turbo.StreamActions``.

    :param attributes: attributes of the element, as for :meth:`append`.
    :param further: more attributes, if their names are valid as keywords.
    """
    further = {**_checked(attributes), **further}
    return str(stream_tag(name, content, target=target, targets=targets, **further))


def stream(stream: str | Iterable[str]) -> Response:
    """Return the response to a request that answers with one stream or several."""
    return current_app.response_class(stream, mimetype=MIMETYPE)


def _stream(
    action: str,
    content: Any,
    target: Any,
    multiple: bool,
    *,
    targets: Any = None,
    method: str | None = None,
    template: Any = None,
    attributes: Mapping[str, Any] | None = None,
    **context: Any,
) -> str:
    """Return a stream; see :func:`append`."""
    if target is None and targets is None:
        raise TypeError(f"{action} needs target= (an id) or targets= (a CSS selector)")
    if method is not None and (method != "morph" or action not in _MORPHED):
        raise ValueError(f'method= is "morph", for replace and update, got {method!r} for {action}')
    if multiple and target is not None:
        if targets is not None:
            raise TypeError("with multiple=True the target is the selector; leave targets= out")
        target, targets = None, target
    if template is not None:
        if content is not None:
            raise TypeError(f"{action} takes either content or template=")
        content = render_template(template, **context)
    elif context:
        raise TypeError(
            f"{action} has no option {next(iter(context))!r}; context needs template=, and other "
            "attributes go into attributes={…}"
        )
    elif content is None:
        raise TypeError(f"{action} needs content, or template= to render")
    further = _checked(attributes)
    return str(
        stream_tag(action, content, target=target, targets=targets, method=method, **further)
    )


def _checked(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the attributes as a dict; a name that has an option of its own is refused."""
    found = dict(attributes or {})
    for name in found:
        if name in _OPTIONS:
            raise TypeError(f"{name!r} is an option of its own, {name}=…, not one of attributes=")
    return found
