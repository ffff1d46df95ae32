"""Keeping table and figures up to date with the records, while jobs run and after."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from study.files import fingerprint, read_json, write_json
from study.paths import study_root

if TYPE_CHECKING:
    from study.plan import Plan

DRAW_SECONDS = 120.0  # between drawings while jobs run


class Collector:
    """Keeps table and figures up to date with the records."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.made: list[Path] = []
        self.skipped: dict[str, str] = {}
        self._drawn = -math.inf

    @property
    def table(self) -> Path:
        return self.out / "results" / self.plan.study / "table.csv"

    def progress(self) -> None:
        """Rewrite the table while jobs run; the figures now and then, because drawing takes time from the jobs."""
        from study.collect import update_table

        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self.update()
            self._drawn = time.monotonic()
        else:
            update_table(self.plan, self.out)

    def update(self) -> None:
        """Rewrite the table, and the figures unless they were drawn from this very table and these sheets."""
        from study.collect import update_table

        update_table(self.plan, self.out)
        drawn = self.out / "figures" / self.plan.study
        mark = study_root() / "tables" / f"{fingerprint(str(drawn.resolve()))}.json"
        sheets = sorted(path.name for path in (self.table.parent / "sheets").glob("*.*"))
        state = hashlib.sha256(self.table.read_bytes() + " ".join(sheets).encode()).hexdigest()
        known = read_json(mark) or {}
        if known.get("table") == state and any(drawn.glob("*.png")):
            self.made, self.skipped = sorted(drawn.glob("*.*")), known["skipped"]
        elif any(stage.record() for planned in self.plan.runs for stage in planned.results):
            from figures.render import render

            rendering = render(self.table.parent, drawn)
            self.made, self.skipped = rendering.written, {**rendering.skipped, **rendering.refused}
            with contextlib.suppress(OSError):  # a full disk under $STUDY_ROOT: they are drawn again
                write_json(mark, {"table": state, "skipped": self.skipped})  # last: a drawing cut off is done again
