"""Hyperparameter search: every trial is a run of the study, and several workers share the trials."""
