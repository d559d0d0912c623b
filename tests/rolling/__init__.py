"""A rolling restart: a proxy, our workers and many clients, while one of them is replaced.

``python -m tests.rolling`` runs it with 1,000 clients for each proxy and each act,
``tests/test_rolling.py`` less of it.
"""
