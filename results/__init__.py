"""What came out: one table per study, its schema, loading, writing and the check of its protocol."""
