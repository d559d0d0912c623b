"""OpenTelemetry's instrumentation of Flask, or with WRAP=wsgi its middleware; FIRST says whether it
stands inside of this package's or around it."""

import os

from flask import Flask, jsonify
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.neighbours.parts import add_endings, add_parts

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer(__name__)


def note(text):
    with tracer.start_as_current_span(f"note {text}"):
        pass


def instrument():
    if os.environ["WRAP"] == "wsgi":
        app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app)
    else:
        FlaskInstrumentor().instrument_app(app)


app = Flask(__name__)
if os.environ.get("FIRST"):
    instrument()
sockets, turbo, sse = add_parts(app)
add_endings(app, sockets, note)
if not os.environ.get("FIRST"):
    instrument()


@app.get("/spans")
def spans():
    return jsonify(
        [
            {
                "name": span.name,
                "attributes": dict(span.attributes),
                "trace": span.context.trace_id,
                "parent": span.parent and span.parent.span_id,
                "id": span.context.span_id,
                "ok": span.status.is_ok,
                "exceptions": [event.attributes["exception.type"] for event in span.events],
            }
            for span in exporter.get_finished_spans()
        ]
    )
