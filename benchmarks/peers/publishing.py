"""How fast one process publishes: ``python publishing.py URL publish|publish_many SECONDS``.

Nothing else runs in it. Prints messages a second and microseconds of its CPU for each, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from flask_sockets2 import Publisher

MANY = 1000  # messages handed to publish_many() in one call
SIZE = 300  # bytes of each
WARM = 0.3  # seconds


def measure(publish: Callable[[], int], seconds: float) -> dict[str, float]:
    """Publish for some time and return the figures of one message."""
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        count += publish()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"per_second": count / elapsed, "cpu_us": cpu / count * 1e6}


def main(url: str, how: str, seconds: float) -> None:
    """Measure one way to publish."""
    text = "x" * SIZE
    many = [("news", text)] * MANY
    with Publisher(url) as publisher:

        def one() -> int:
            publisher.publish("news", text)
            return 1

        def all_of_many() -> int:
            return len(publisher.publish_many(many))

        publish = all_of_many if how == "publish_many" else one
        measure(publish, WARM)
        print(json.dumps(measure(publish, seconds)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
