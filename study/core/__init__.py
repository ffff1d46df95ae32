"""What all other packages build on: files, paths, leases, processes, randomness. Nothing here depends on a study."""
