"""Whether a machine, or a cluster's nodes, can do what a plan asks, and how fast: a minute before a week."""
