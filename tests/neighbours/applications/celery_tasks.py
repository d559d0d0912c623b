"""Celery: a task of another process publishes to sockets, streams and pages."""

import os

from celery import Celery, Task
from flask import Flask

from tests.neighbours.parts import add_parts

URL = os.environ["BROKER"]


class FlaskTask(Task):
    def __call__(self, *args, **kwargs):
        with app.app_context():
            return self.run(*args, **kwargs)


app = Flask(__name__)
app.config["SOCKETS_BROKER_URL"] = os.environ["SOCKETS_BROKER"]
sockets, turbo, sse = add_parts(app)
celery = Celery("tests.neighbours.applications.celery_tasks", task_cls=FlaskTask)
celery.conf.update(broker_url=URL, task_ignore_result=True, broker_connection_retry_on_startup=True)


@celery.task
def work(text):
    sockets.publish("work", text)
    sse.publish(text, channel="work")
    turbo.push(turbo.update(text, "news"))


@sockets.route("/work")
def listen(ws):
    ws.subscribe("work")


@app.post("/work/<text>")
def start(text):
    work.delay(text)
    return "begun"
