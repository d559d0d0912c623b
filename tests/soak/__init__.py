"""The soak: a server, its broker, nginx and many clients, all of them ill-treated for some time.

``make soak MINUTES=10`` runs it, ``python -m tests.soak --help`` says what else can be chosen;
``tests/test_soak.py`` runs less of it, and proves that each kind of fault would be found.

::

    clients ── relay ── nginx ── gunicorn: workers ── Valkey
    swarm.py   relay.py proxy.py application.py         │
                                 publisher.py ──────────┘

``damage.py`` does to all of them what can go wrong; ``checker.py`` holds what was seen of channels
against what was published, ``answers.py`` what was seen of the rest, ``resources.py`` watches
memory and descriptors, ``aftermath.py`` looks at what is left when all clients have gone, and
``report.py`` is the ledger.

In the first part of a run with all features anything is done to the servers. In the rest workers
are neither killed nor replaced: only a process that lives for minutes shows whether it grows.
"""
