"""What a single hostile client costs everybody else: ``python -m tests.attacks``.

Each attack runs against a worker of its own, at the package's defaults. A bystander, in a process
of its own, echoes over a WebSocket and fetches pages meanwhile; the table has the longest time that
either waited, ``>`` if it still waits, and the worker's resident memory before the attack, at its
peak, and after the attackers have left. Server, attackers and bystander share one machine, so the
waits are upper bounds: a part of each is a wait for a processor. ``--package DIR`` attacks another
checkout, to compare.
"""
