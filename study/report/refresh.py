"""Keeping table, figures and report up to date with the records, while jobs run and after."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from pathlib import Path

from figures.render import render
from study.core.files import fingerprint, read_json, write_json
from study.core.paths import study_root
from study.plan.runs import Job, Plan
from study.report.html.page import write_page
from study.report.rows import update_table
from study.submit.slurm import settle

DRAW_SECONDS = 120.0  # between drawings while jobs run


class StudyFiles:
    """Keeps table, figures and report up to date with the records."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.made: list[Path] = []
        self.skipped: dict[str, str] = {}
        self._drawn = -math.inf

    @property
    def table(self) -> Path:
        return self.out / "results" / self.plan.study / "table.csv"

    @property
    def report(self) -> Path:
        return self.table.with_name("report.html")

    def progress(self) -> None:
        """Rewrite the table while jobs run; the figures now and then, because drawing takes time from the jobs."""
        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self.update()
            self._drawn = time.monotonic()
        else:
            update_table(self.plan, self.out)

    def update(self) -> None:
        """Rewrite the table, and figures and report unless they were made from this very table, these sheets and
        searches."""
        update_table(self.plan, self.out)
        drawn = self.out / "figures" / self.plan.study
        mark = study_root() / "tables" / f"{fingerprint(str(drawn.resolve()))}.json"
        sheets = sorted(path.name for path in (self.table.parent / "sheets").glob("*.*"))
        searches = sorted((self.table.parent / "search").glob("*.json"))
        read = [self.table.read_bytes(), " ".join(sheets).encode(), *(path.read_bytes() for path in searches)]
        state = hashlib.sha256(b"".join(read)).hexdigest()
        known = read_json(mark) or {}
        made = [drawn / name for name in known.get("made", ())]
        if known.get("table") == state and all(path.exists() for path in (*made, self.report)) and made:
            self.made, self.skipped = made, known["skipped"]
            return
        measured = any(stage.record() for planned in self.plan.runs for stage in planned.results)
        if measured:
            rendering = render(self.table.parent, drawn)
            self.made, self.skipped = rendering.written, {**rendering.skipped, **rendering.refused}
        self._write_report(drawn)
        if measured:
            with contextlib.suppress(OSError):  # a full disk under $STUDY_ROOT: they are drawn again
                about = {"table": state, "skipped": self.skipped, "made": [path.name for path in self.made]}
                write_json(mark, about)  # last: a drawing that was cut off is done again

    def _write_report(self, drawn: Path) -> None:

        try:
            write_page(self.table.parent, drawn, self.skipped)
        except Exception as error:  # a fault in the page must not stop the study
            self.report.unlink(missing_ok=True)  # of an earlier table
            self.skipped["report"] = f"{type(error).__name__}: {error}"


def collect(plan: Plan, jobs: list[Job], out: Path) -> None:
    """The last job of a sweep on Slurm: settle what has ended, write the table, draw the figures."""
    settle(jobs)
    StudyFiles(plan, out).update()
