"""The ablations: one file per question.

A file declares `QUESTION`, `SOURCE` (where the paper asks it) and `runs(scale)`. If several settings change together as
one factor it also declares `FACTORS`, and if runs have labels it may declare `BASE`. It declares nothing else.
"""
