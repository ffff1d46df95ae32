"""What everything else stands on: files, paths, leases, processes, randomness. It knows nothing of a study."""
