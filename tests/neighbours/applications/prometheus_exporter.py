"""prometheus-flask-exporter beside this package's own metrics."""

from flask import Flask
from prometheus_flask_exporter import PrometheusMetrics

from tests.neighbours.parts import add_endings, add_parts

app = Flask(__name__)
app.config["SOCKETS_METRICS_ROUTE"] = "/sockets/metrics"
metrics = PrometheusMetrics(app)
sockets, turbo, sse = add_parts(app)
add_endings(app, sockets, lambda text: None)
