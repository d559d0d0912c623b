"""The soak: a server, its broker and many clients, all of them ill-treated for some time.

``python -m tests.soak --seconds 120 --clients 1000`` runs it, ``tests/test_soak.py`` less of it.
"""
