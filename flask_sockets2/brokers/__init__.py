"""Brokers: channels, their history, and delivery to every process that subscribes."""
