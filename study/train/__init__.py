"""What both trainings share: the loop, its checkpoints and history, and what is frozen beside the trained network."""
