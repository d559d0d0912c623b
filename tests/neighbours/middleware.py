"""The applications of :mod:`tests.middlewares` with middleware from PyPI."""

from __future__ import annotations

import logging

import requestlogger
import sentry_sdk
from beaker.middleware import SessionMiddleware
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from paste.translogger import TransLogger
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from webob.dec import wsgify

from tests.middlewares import MIDDLEWARE, app, into

__all__ = ["app"]


class Events(logging.Handler):
    def __init__(self, name):
        super().__init__()
        self.file = into(name)

    def emit(self, record):
        print(record.getMessage(), file=self.file)


# -- of others -----------------------------------------------------------------------------


def request_logger(app):
    def line(status, environ, length, **more):
        return f"{status} {environ['REQUEST_METHOD']} {length}"

    return requestlogger.WSGILogger(app, [Events("request_logger")], line, propagate=False)


def translogger(app):
    logger = logging.Logger("translogger")
    logger.addHandler(Events("translogger"))
    return TransLogger(app, logger=logger, format="%(status)s %(REQUEST_METHOD)s")


def webob(app):
    @wsgify.middleware
    def passed(request, app):
        response = request.get_response(app)
        print(response.status_int, file=into("webob"))
        return response

    return passed(app)


class Transport(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            content = item.payload.json or {}
            if content.get("type") == "transaction":
                print(content["contexts"]["response"]["status_code"], file=into("sentry"))


sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    transport=Transport,
    traces_sample_rate=1.0,
    default_integrations=False,
    auto_enabling_integrations=False,
    shutdown_timeout=0,
)


class Spans(InMemorySpanExporter):
    def export(self, spans):
        for span in spans:
            print(span.attributes["http.status_code"], file=into("opentelemetry"))
        return super().export(spans)


tracer = TracerProvider()
tracer.add_span_processor(SimpleSpanProcessor(Spans()))


MIDDLEWARE.update(
    {
        "request_logger": request_logger,
        "translogger": translogger,
        "webob": webob,
        "sentry": SentryWsgiMiddleware,
        "opentelemetry": lambda app: OpenTelemetryMiddleware(app, tracer_provider=tracer),
        "beaker": lambda app: SessionMiddleware(
            app, {"session.auto": True, "session.type": "memory"}
        ),
    }
)
