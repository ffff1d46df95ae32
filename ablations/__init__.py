"""What is asked: one file per question. A file declares `QUESTION` and `runs(scale)`, nothing else."""
