"""What is searched: one file per space, for `python -m study.search`.

A file declares `QUESTION`, `OBJECTIVES` (metrics of the results table, all of them minimised), `dimensions(scale)` and
`run(scale, values, repeat, scored)`; and nothing else. Repeat 0 is the trial; later ones are the same settings with
other seeds, `scored` where they give the score that is published and no longer choose.
"""
