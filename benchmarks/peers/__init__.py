"""One echo server per module, each started in a process of its own by :mod:`benchmarks.servers`."""
