"""From records to readable results: the results table, the terminal output, the HTML report."""
