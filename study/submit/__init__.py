"""Where jobs run: on this machine or on Slurm, and how one is run."""
