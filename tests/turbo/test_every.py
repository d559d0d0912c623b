"""Jobs that run again and again, in one of all workers."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from flask import Flask, current_app

from flask_sockets2.application.state import state_of
from flask_sockets2.turbo import Turbo
from flask_sockets2.turbo.jobs import _JobLease
from tests import clients
from tests.brokers.servers import RedisServer, redis_or_skip
from tests.processes import Server, wait_until

SITE = """
    import os
    from time import sleep
    from flask import Flask
    from flask_sockets2.turbo import Turbo
    from flask_sockets2.turbo import jobs as every

    app = Flask(__name__)
    app.config.from_prefixed_env()
    turbo = Turbo(app)

    @app.get("/")
    def page():
        turbo.turbo()
        return str(os.getpid())

    @app.get("/nothing")
    def nothing():
        return ""
"""

APP = f"""{SITE}
    every.LEASE = 2.0

    @turbo.every(0.1)
    def job():
        print("ran in", os.getpid(), flush=True)

    @turbo.every(0.1)
    def broken():
        raise RuntimeError("this one is broken")
"""

LONG = f"""{SITE}
    every.LEASE = 1.5

    @turbo.every(0.05)
    def long():
        print("begun", flush=True)
        sleep(4)  # longer than the lease
        print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    yield from redis_or_skip()


@pytest.fixture
def server(gunicorn: Callable[..., Server], redis: RedisServer) -> Server:
    environ = {"FLASK_SOCKETS_BROKER_URL": redis.url}
    return gunicorn(APP, args=["-w", "2"], environ=environ)


def runs(server: Server, since: int = 0) -> list[int]:
    """In which process the job ran."""
    lines = server.output[since:].splitlines()
    return [int(line.split()[-1]) for line in lines if line.startswith("ran in ")]


def serve_in_both(server: Server) -> set[int]:
    """Have both workers serve a page."""
    served: set[int] = set()

    def both() -> bool:
        served.add(int(clients.http(server.url("/"))[1]))
        return len(served) == 2

    wait_until(both, "both workers to serve a page")
    return served


@pytest.mark.quick
def test_a_job_runs_in_one_of_the_workers(server: Server) -> None:
    workers = serve_in_both(server)
    wait_until(lambda: len(runs(server)) >= 10, "ten runs")
    assert len(set(runs(server))) == 1
    assert set(runs(server)) < workers


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(server: Server) -> None:
    workers = serve_in_both(server)
    wait_until(lambda: bool(runs(server)), "a run")
    killed = runs(server)[0]
    os.kill(killed, signal.SIGKILL)
    other = (workers - {killed}).pop()
    wait_until(lambda: other in runs(server), "the other worker to do the job")


@pytest.mark.slow
def test_a_worker_that_stops_hands_its_jobs_over(server: Server) -> None:
    serve_in_both(server)
    wait_until(lambda: bool(runs(server)), "a run")
    stopped = runs(server)[0]
    os.kill(stopped, signal.SIGTERM)
    wait_until(lambda: set(runs(server)) != {stopped}, "another worker to do the job")


@pytest.mark.slow
def test_a_job_that_takes_long_is_not_begun_twice(
    gunicorn: Callable[..., Server], redis: RedisServer
) -> None:
    server = gunicorn(LONG, args=["-w", "2"], environ={"FLASK_SOCKETS_BROKER_URL": redis.url})
    serve_in_both(server)
    wait_until(lambda: "ended" in server.output, "the end of the first run")
    events = [line for line in server.output.splitlines() if line in ("begun", "ended")]
    assert events[:2] == ["begun", "ended"]


def test_a_job_that_raises_is_logged_and_goes_on(server: Server) -> None:
    serve_in_both(server)
    wait_until(lambda: server.output.count("RuntimeError: this one is broken") >= 3, "three runs")


def test_without_a_page_nothing_runs(gunicorn: Callable[..., Server]) -> None:
    server = gunicorn(APP)
    for _ in range(3):
        assert clients.http(server.url("/nothing"))[0] == 200
    assert runs(server) == []
    clients.http(server.url("/"))
    wait_until(lambda: bool(runs(server)), "the first run")


def test_a_job_runs_in_the_context_of_its_application() -> None:
    app, ran = Flask(__name__), []
    app.secret_key = "secret"
    turbo = Turbo(app)

    @turbo.every(0.5, name="once")
    def job() -> None:
        ran.append(current_app.name)

    with app.test_request_context():
        turbo.turbo()
        turbo.turbo()
    wait_until(lambda: bool(ran), "the first run")
    assert set(ran) == {app.name}
    threads = [each.name for each in threading.enumerate()]
    assert threads.count("flask_sockets2 once") == 1
    state_of(app).channels.close()  # it would keep the application for as long as positions


def test_while_an_application_is_tested_no_job_begins() -> None:
    app = Flask(__name__)
    app.testing = True
    turbo, ran = Turbo(app), []
    turbo.every(0.001, name="job")(lambda: ran.append(1))
    before = set(threading.enumerate())
    with app.test_request_context():
        turbo.turbo()
    assert set(threading.enumerate()) - before == set()
    assert ran == []


def test_a_job_that_waits_for_the_broker_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)
    app.config["SOCKETS_BROKER_URL"] = "redis://127.0.0.1:1/0"
    turbo = Turbo(app)
    turbo.every(0.5, name="job")(lambda: None)
    with app.test_request_context():
        turbo.start_jobs(app)
    wait_until(lambda: "the job job waits for the broker" in caplog.text, "the error")
    caplog.clear()  # the error keeps the application, and with it the job


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        Turbo().every(seconds)


@pytest.mark.parametrize("seconds", ["5", None, True, print])
def test_parentheses_without_a_number_are_refused(seconds: Any) -> None:
    with pytest.raises(TypeError, match=r"as @turbo.every\(5\)"):
        Turbo().every(seconds)


def test_what_has_no_name_needs_one() -> None:
    turbo = Turbo()
    with pytest.raises(TypeError, match="has no name of its own"):
        turbo.every(5)(partial(print, "x"))
    turbo.every(5, name="print")(partial(print, "x"))
    with pytest.raises(TypeError, match="a job is a function"):
        turbo.every(5)(None)  # type: ignore[type-var]


def test_a_factory_that_is_called_again_registers_its_job_anew() -> None:
    turbo = Turbo()

    def create_app(result: int) -> None:
        @turbo.every(5)
        def job() -> int:
            return result

    create_app(1)
    create_app(2)
    [job] = turbo._jobs.registered
    assert job.function() == 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, BaseException])
def test_whatever_a_job_raises_it_goes_on(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """gevent.Timeout is a BaseException."""
    app, runs = Flask(__name__), []
    turbo = Turbo(app)

    @turbo.every(0.01)
    def job() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise error

    turbo.start_jobs(app)
    wait_until(lambda: len(runs) >= 3, "the third run")
    assert "raised; it goes on" in caplog.text
    caplog.clear()  # its tracebacks would keep the application, and with it the job


def test_a_job_ends_with_its_application() -> None:
    before = set(threading.enumerate())
    app: Any = Flask(__name__)
    turbo = Turbo()
    turbo.init_app(app)
    turbo.every(0.01, name="own job")(lambda: None)
    turbo.start_jobs(app)
    # Threads of earlier tests may end meanwhile; what they log would keep their application.
    [thread] = set(threading.enumerate()) - before
    assert thread.name == "flask_sockets2 own job"
    app = None

    def ended() -> bool:
        gc.collect()
        return not thread.is_alive()

    wait_until(ended, "the job's thread to end")


def test_a_lease_that_was_given_back_is_not_renewed() -> None:
    """Its thread may be about to do so, and another process about to take it."""
    publisher, held = Mock(), []
    publisher.broker.hold = lambda name, holder, seconds: held.append(seconds)
    lease = _JobLease(publisher, "job")
    lease.give_back()
    lease._renew()
    assert set(held) == {0.0}


def test_what_a_command_renders_begins_no_job() -> None:
    app = Flask(__name__)
    turbo, ran = Turbo(app), []
    turbo.every(0.001, name="command")(lambda: ran.append(1))
    with app.app_context():
        turbo.turbo()
    assert not [each for each in threading.enumerate() if each.name.endswith("command")]


def test_a_name_is_one_jobs() -> None:
    turbo = Turbo()
    turbo.every(1, name="load")(print)
    with pytest.raises(ValueError, match="there is a job 'load' already"):
        turbo.every(2, name="load")(len)
