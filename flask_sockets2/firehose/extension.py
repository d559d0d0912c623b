"""Firehose: Link headers, Early Hints and early page heads for Flask applications."""

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
    """Lets browsers load the files of an application's pages early.

    ::

        firehose = Firehose(app)

        @app.get("/report")
        @firehose.hints("/static/app.css")
        def report():
            return firehose.flush("report.html", rows=slow_query)

    Settings of the application:

    ========================== ========= ======================================================
    ``FIREHOSE_EARLY_HINTS``   auto      True: whenever the server can; False: never.
    ``FIREHOSE_HOP_HEADER``    None      Header that a proxy sets if Early Hints pass.
    ``FIREHOSE_LEARN``         True      Hint also at the files that the last page pushed.
    ========================== ========= ======================================================

    :param app: the application, or None to call :meth:`init_app` later, for one or several.
    :param connector: memory of the URLs pushed to a client, which are not pushed again: an object
        with ``get_pushed()`` and ``set_pushed(set)``, or its class. By default the session; None
        for no memory, so that every response has all of its links.
    :raises TypeError: if the connector lacks a method.
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
        #: The memory of the URLs that were pushed to a client.
        self.connector: Memory | None = made
        #: The application passed to the constructor.
        self.app = app
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set up an application, and add ``push`` and ``flush`` to its templates.

        :raises ValueError: if a setting is invalid, which the error names.
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
        )  # last: Flask may refuse the calls above

    def populate(self) -> Response | None:
        """Send the known links of a page before its view runs, or answer a request of a check."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        answered = answer(app)
        if answered is None:
            early.begin(app)
        return answered

    def set_header(self, response: Response) -> Response:
        """Add the links of a request to the Link header of its response."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy, as Flask documents it
        hinted = record_of(app).hinted if response.status_code < 400 else []
        write_links(app, response, hinted)
        early.learn(app, response)
        return response
