"""The speed and the size of flask_sockets2 beside its peers: ``python -m benchmarks --help``."""
