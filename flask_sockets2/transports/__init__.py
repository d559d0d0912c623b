"""Bytes and sockets: one module for each way of waiting."""
