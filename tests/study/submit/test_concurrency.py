"""Many processes at once on the same folders: nothing is lost, doubled or torn."""

import dataclasses
import json
import os

from forked import CONTEXT
from made_up import COMPUTE, ORIGIN, Asking, data_spec, finish

from results import table as results
from study.plan.resolve import make_plan
from study.plan.runs import Run
from study.plan.scales import smoke
from study.plan.stage import Stage
from study.report.table_rows import update_table
from study.submit import jobs

PROCESSES, RECORDS = 16, 1000


def together(target, count, *arguments):
    """Run target(number, *arguments) in so many processes at once; all of them must end well."""
    processes = [CONTEXT.Process(target=target, args=(number, *arguments)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def plan(ablation="one", *runs):
    return make_plan(ablation, Asking(*(runs or [Run(tokenizer="f4d4")])), smoke(), data_spec(), COMPUTE, "made")


def stages():
    """Small stages that differ only in their seeds."""
    first = plan().stages[0]
    return [Stage(first.kind, dataclasses.replace(first.spec, seed=seed)) for seed in range(RECORDS)]


def run_all(number, root, log):
    """Run a quarter of the stages, so that four processes need each; log those that this process computes."""
    os.environ["STUDY_ROOT"] = root

    def execute(stage, out):
        out.progress(0, 1)
        with open(log, "a") as file:
            file.write(f"{stage.fingerprint}\n")
        return {"cost": {}, "numbers": [stage.spec.seed] * 50}

    jobs.stages.execute, jobs.provenance = execute, lambda compute: ORIGIN
    os.fsync = lambda file: None  # only protects from power cuts, and takes half of the time
    first = number * RECORDS // PROCESSES
    for stage in (2 * stages())[first : first + RECORDS // 4]:
        record = stage.folder / "record.json"
        if record.exists():
            json.loads(record.read_text())  # others write here: a file that exists is complete
        assert jobs.run_stage(stage)["numbers"] == [stage.spec.seed] * 50


def test_of_1000_records_that_16_processes_ask_for_none_is_lost_doubled_or_torn(study_root, tmp_path):
    log = tmp_path / "log"
    together(run_all, PROCESSES, str(study_root), log)
    all_stages = stages()
    assert sorted(log.read_text().split()) == sorted(stage.fingerprint for stage in all_stages)  # each computed once
    for stage in all_stages:
        assert stage.record()["spec"]["seed"] == stage.spec.seed
        assert {path.name for path in stage.folder.iterdir()} == {".lock", "record.json"}


def put_into_table(number, root, out):
    """Write rows into the table repeatedly: one that all processes share and one of this process."""
    os.environ["STUDY_ROOT"] = root
    own = plan(f"asks{number}", Run(tokenizer="f4d4"), Run(tokenizer="f4d4", tokenizer_seed=1 + number))
    for attempt in range(4):
        if attempt == 2:
            for stage in own.jobs[1].stages:
                finish(stage, rfid=float(number))
        update_table(own, out)


def test_a_table_that_8_processes_write_at_once_has_the_rows_of_all(study_root, tmp_path):
    together(put_into_table, 8, str(study_root), tmp_path)
    table = results.load(tmp_path / "results" / "made" / "table.csv")
    rows = table.set_index("tokenizer_seed")[["state", "rfid", "ablations"]]
    assert len(rows) == 9
    assert rows.loc[0, "ablations"] == tuple(f"asks{number}" for number in range(8))
    for number in range(8):
        assert rows.loc[1 + number].tolist() == ["done", float(number), (f"asks{number}",)]
