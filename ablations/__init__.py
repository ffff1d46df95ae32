"""What is asked: one file per question.

A file declares `QUESTION`, `SOURCE` (where the paper asks it) and `runs(scale)`; where several settings change as one
also `FACTORS`, where runs have labels perhaps `BASE`; and nothing else.
"""
