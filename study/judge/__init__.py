"""Evaluation of pictures and latents: judges, references and metrics."""
