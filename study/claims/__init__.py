"""Which of the paper's claims hold in a study: the claims, their evidence in a results table, and the rule."""
