"""Fuzz: ``python -m tests.fuzz SECONDS [TARGET …]``, each time with other inputs.

Hypothesis makes the inputs from the seeds in ``tests/fuzz/corpus``, and what fails as small as it
can. Put that into the corpus of its target with the mending: then it is tried ever after.
"""

from __future__ import annotations

import secrets
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.inputs import inputs
from tests.fuzz.targets import TARGETS

AT_ONCE = 200
"""Examples between two looks at the clock."""


def fuzz(name: str, examples: int, number: int = 0) -> int:
    """Try a target, and return how many inputs it was given.

    :param number: other inputs for each; 0 for always the same.
    """
    target = TARGETS[name]
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(name, narrow=target.narrow))
    def holds(given: tuple[str, ...]) -> None:
        nonlocal count
        count += 1
        target.holds(*given)

    holds()
    return count


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 60.0
    names = arguments[1:] or [*TARGETS]
    for name in names:
        if name not in TARGETS:
            print(f"{name!r} is no target; expected one of {', '.join(TARGETS)}", file=sys.stderr)
            return 2
    for name in names:
        until, count = time.monotonic() + seconds / len(names), 0
        while time.monotonic() < until:
            count += fuzz(name, AT_ONCE, secrets.randbits(64))
        print(f"{name:12} {count:7} inputs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
