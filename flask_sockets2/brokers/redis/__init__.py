"""The broker that keeps its messages in Redis or Valkey."""
