"""Measures chairlift: continuous against static batching, in process and over HTTP."""
