"""Keep table, figures and report up to date with the records, while jobs run and afterwards."""

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
from study.report.table_rows import update_table
from study.submit.slurm import note_ended_jobs

DRAW_SECONDS = 120.0  # at least, between drawings while jobs run
DRAW_SHARE = 1 / 30  # of the time, at most, while jobs run: it is taken from them


class StudyFiles:
    """Keeps table, figures and report up to date with the records."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.drawn: list[Path] = []
        self.skipped: dict[str, str] = {}
        self._next_drawing = -math.inf

    @property
    def table(self) -> Path:
        return self.out / "results" / self.plan.study / "table.csv"

    @property
    def report(self) -> Path:
        return self.table.with_name("report.html")

    def progress(self) -> None:
        """Rewrite the table while jobs run, and now and then the figures."""
        began = time.monotonic()
        if began < self._next_drawing:
            update_table(self.plan, self.out)
            return
        self.update()
        ended = time.monotonic()
        self._next_drawing = ended + max(DRAW_SECONDS, (ended - began) / DRAW_SHARE)

    def update(self) -> None:
        """Rewrite the table, and redraw figures and report if the table, the sheets or the searches have changed."""
        update_table(self.plan, self.out)
        folder = self.out / "figures" / self.plan.study
        note_path = study_root() / "tables" / f"{fingerprint(str(folder.resolve()))}.json"
        sheets = sorted(path.name for path in (self.table.parent / "sheets").glob("*.*"))
        searches = sorted((self.table.parent / "search").glob("*.json"))
        inputs = [self.table.read_bytes(), " ".join(sheets).encode(), *(path.read_bytes() for path in searches)]
        digest = hashlib.sha256(b"".join(inputs)).hexdigest()
        note = read_json(note_path) or {}
        drawn = [folder / name for name in note.get("made", ())]
        if note.get("table") == digest and all(path.exists() for path in (*drawn, self.report)) and drawn:
            self.drawn, self.skipped = drawn, note["skipped"]
            return
        measured = any(
            judge.record() for planned in self.plan.runs for result in planned.results for judge in result.judges
        )
        if measured:
            rendering = render(self.table.parent, folder)
            self.drawn, self.skipped = rendering.written, {**rendering.skipped, **rendering.refused}
        self._write_report(folder)
        if measured:
            with contextlib.suppress(OSError):  # without the note (disk full) figures are drawn again next time
                note = {"table": digest, "skipped": self.skipped, "made": [path.name for path in self.drawn]}
                write_json(note_path, note)  # written last, so that an interrupted drawing is repeated

    def _write_report(self, figures: Path) -> None:
        try:
            write_page(self.table.parent, figures, self.skipped)
        except Exception as error:  # a bug in the report must not stop the study
            self.report.unlink(missing_ok=True)  # it shows an earlier table
            self.skipped["report"] = f"{type(error).__name__}: {error}"


def collect(plan: Plan, jobs: list[Job], out: Path) -> None:
    """The last job of a sweep on Slurm: note failures of ended jobs, write the table, draw the figures."""
    note_ended_jobs(jobs)
    StudyFiles(plan, out).update()
