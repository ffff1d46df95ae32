"""Results: one table per study, its schema, loading, writing, and the check that rows have one protocol."""
