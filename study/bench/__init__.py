"""Benchmarks: how fast the parts of a study run on this machine."""
