"""Running jobs, on this machine or on Slurm."""
