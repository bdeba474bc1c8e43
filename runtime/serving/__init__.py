"""Requests from outside: one path for all of them, the OpenAI-compatible server and the Triton model on it."""
