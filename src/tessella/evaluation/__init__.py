"""Measures what a model paints: each metric with the protocol that makes it comparable."""
