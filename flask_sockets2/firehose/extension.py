"""Firehose: Link headers, Early Hints and pages whose head comes first, for Flask applications."""

from __future__ import annotations

from flask import Flask, Response, current_app

from ..application.settings import warn_of_misspelt
from ..settings import read
from . import early
from .early import early_hints, hints
from .probe import answer
from .pushes import EXTENSION, Connector, FirehoseState, Memory, push, record_of, write_links
from .settings import FirehoseSettings
from .streaming import flush, flush_mark

__all__ = ["Firehose"]


class Firehose:
    """Says what the pages of an application need.

    ::

        firehose = Firehose(app)

        @app.get("/report")
        @firehose.hints("/static/app.css")
        def report():
            return firehose.flush("report.html", rows=slow_query)

    Settings of the application:

    ========================== ========= ======================================================
    ``FIREHOSE_EARLY_HINTS``   auto      True: wherever the server can; False: never.
    ``FIREHOSE_HOP_HEADER``    None      Set by a proxy in requests, if it passes Early Hints.
    ``FIREHOSE_LEARN``         True      Send with a page's hints what its last one has pushed.
    ========================== ========= ======================================================

    :param app: the application, or None to call :meth:`init_app` later, for one or several.
    :param connector: remembers what a client has been pushed, and so will not be again: an object
        with ``get_pushed()`` and ``set_pushed(set)``, or its class. By default in the session; None
        for no memory, which gives every response all of its links.
    :raises TypeError: when the connector lacks a method.
    """

    push = staticmethod(push)
    hints = staticmethod(hints)
    early_hints = staticmethod(early_hints)
    flush = staticmethod(flush)

    def __init__(
        self, app: Flask | None = None, connector: Memory | type[Memory] | None = Connector
    ) -> None:
        made = connector() if isinstance(connector, type) else connector
        for method in ("get_pushed", "set_pushed"):
            if made is not None and not callable(getattr(made, method, None)):
                raise TypeError(
                    f"the connector {connector!r} has no {method}(); give it one, or None for no "
                    "memory of what was pushed"
                )
        #: Remembers what a client has been pushed.
        self.connector: Memory | None = made
        #: The application that the constructor was given.
        self.app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve an application, and give its templates ``push`` and ``flush``.

        :raises ValueError: when a setting is not what is expected, naming it.
        """
        read(FirehoseSettings, app.config)
        warn_of_misspelt(app.config, app.extensions)
        if EXTENSION in app.extensions:
            app.extensions[EXTENSION].memory = self.connector
            return
        app.add_template_global(push, "push")
        app.add_template_global(flush_mark, "flush")
        app.before_request(self.populate)
        app.after_request(self.set_header)
        app.extensions[EXTENSION] = FirehoseState(
            self.connector
        )  # last: Flask may have refused the others

    def populate(self) -> Response | None:
        """Begin a request, before its view: send what is known of the page already."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        answered = answer(app)
        if answered is None:
            early.begin(app)
        return answered

    def set_header(self, response: Response) -> Response:
        """Put the links of a request into the header of its response."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        hinted = record_of(app).hinted if response.status_code < 400 else []
        write_links(app, response, hinted)
        early.learn(app, response)
        return response
