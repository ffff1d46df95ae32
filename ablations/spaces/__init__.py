"""The search spaces: one file per space, for `python -m study.search`.

A file declares `QUESTION`, `OBJECTIVES` (metrics of the results table, all of them minimised), `dimensions(scale)` and
`run(scale, values, repeat, scored)`. Repeat 0 is the trial; other repeats have the same settings with other seeds.
`scored` is true for repeats that give the final score and take no part in choosing the winner. It may declare
`first(scale)`: values to try before any are proposed, each in place of some of the defaults.
"""
