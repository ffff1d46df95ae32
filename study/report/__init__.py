"""From records to what people read: the table, the terminal, the page."""
