"""Show a notification in every browser that has the page of `examples/notify.py` open.

    export SOCKETS_BROKER_URL=redis://localhost:6379/0
    python -m examples.notify_script "Lunch is ready" "In the kitchen, as always."
    python -m examples.notify_script "Backup" --progress

The script needs the package with its extra "redis", and a running broker. It needs no application,
no server and no gevent.
"""

import argparse
import os
import secrets
import sys
import time

from flask_sockets2 import BrokerError, Publisher

CHANNEL = "notify:all"


def notify(publisher, title, text=""):
    publisher.publish(CHANNEL, {"id": secrets.token_hex(8), "title": title, "text": text})


def show_progress(publisher, title, seconds):
    """Publish one notification repeatedly: the page shows the newest state of each id."""
    number = secrets.token_hex(8)
    for percent in range(0, 101, 5):
        state = {"id": number, "title": title, "percent": percent}
        # With the key a slow browser gets only the newest state.
        publisher.publish(CHANNEL, state, key=number)
        time.sleep(seconds / 20)


def main():
    parser = argparse.ArgumentParser(description="Show a notification in all browsers.")
    parser.add_argument("title")
    parser.add_argument("text", nargs="?", default="")
    parser.add_argument("--progress", action="store_true", help="count up to 100 %%")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of --progress")
    given = parser.parse_args()
    try:
        url = os.environ["SOCKETS_BROKER_URL"]
    except KeyError:
        sys.exit("set SOCKETS_BROKER_URL to the URL that the application uses")
    try:
        with Publisher(url) as publisher:
            if given.progress:
                show_progress(publisher, given.title, given.seconds)
            else:
                notify(publisher, given.title, given.text)
    except BrokerError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
