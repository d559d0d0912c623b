"""Flask-APScheduler: a job that publishes."""

from flask import Flask
from flask_apscheduler import APScheduler

from tests.neighbours.parts import add_parts

app = Flask(__name__)
app.config["SCHEDULER_TIMEZONE"] = "UTC"
scheduler = APScheduler()
sockets, turbo, sse = add_parts(app)


def tick():
    with scheduler.app.app_context():
        sockets.publish("ticks", "tick")
        sse.publish("tick", channel="ticks")
        turbo.push(turbo.update("tick", "news"))


scheduler.init_app(app)
scheduler.add_job("tick", tick, trigger="interval", seconds=0.2)
scheduler.start()


@sockets.route("/ticks")
def ticks(ws):
    ws.subscribe("ticks")
