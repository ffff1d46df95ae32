"""What is asked, resolved: from an ablation and a scale to runs, stages and jobs.

Torch-free; nothing is computed here.
"""
