"""Shared by both trainings: the loop, its checkpoints and history, and the frozen networks that a loss needs."""
