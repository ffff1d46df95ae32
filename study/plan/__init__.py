"""Planning: an ablation and a scale are resolved to runs, stages and jobs.

Does not import torch; nothing is computed here.
"""
