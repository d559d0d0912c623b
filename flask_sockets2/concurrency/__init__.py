"""Threads, greenlets and forks."""
