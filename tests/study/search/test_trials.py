"""The trials of a search: each run once, never more than the budget, none lost with a killed worker or torn line."""

import json
import os
import signal
import time

import optuna
import pytest
from forked import CONTEXT

from study.core.files import read_json
from study.core.lease import locked
from study.core.stopping import Interrupted
from study.search.journal import JOURNAL, Journal, open_storage
from study.search.spaces import Choice, Number
from study.search.trials import ATTEMPTS, Outcome, Trials, TrialsFailed, do_trials, has_result, open_study, outcome_of

DIMENSIONS = {
    "rate": Number(label="rate", low=0.001, high=1.0, default=0.1, log=True),
    "steps": Number(label="steps", low=1, high=9, default=5),
    "kind": Choice(label="kind", choices=("a", "b"), default="a"),
}


def open_trials(folder, budget, worker="0", dimensions=DIMENSIONS):
    storage = open_storage(str(folder / JOURNAL))
    study = open_study(storage, "toy", ["gfid"])
    return Trials(folder / "trials", storage, study, dimensions, budget, seed=1, worker=worker)


def square(claimed):
    rate, steps = claimed.values["rate"], claimed.values["steps"]
    return Outcome(state="complete", values=((rate - 0.3) ** 2 + steps,), run="r", seconds=1.0)


def numbers(trials):
    return [trial.number for trial in trials.all() if has_result(trial)]


def start(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def test_the_first_trial_is_the_default_and_numbers_have_few_digits(tmp_path):
    trials = open_trials(tmp_path, budget=12)
    do_trials(trials, square)
    values = [trials.values(trial) for trial in trials.all()]
    assert values[0] == {"rate": 0.1, "steps": 5, "kind": "a"}
    assert all(float(f"{one['rate']:.2g}") == one["rate"] for one in values)
    assert {one["kind"] for one in values} == {"a", "b"}


def test_values_that_the_space_names_come_after_the_default_once_each_also_if_they_fail(tmp_path):
    trials = open_trials(tmp_path, budget=4)
    default = {"rate": 0.1, "steps": 5, "kind": "a"}
    named = [default, {**default, "kind": "b"}, {**default, "steps": 9}]
    trials.first = named

    def fails_at_nine(claimed):
        return Outcome(state="failed", reason="made up") if claimed.values["steps"] == 9 else square(claimed)

    do_trials(trials, fails_at_nine)
    values = [trials.values(trial) for trial in trials.all()]
    assert values[:3] == named
    assert values.count(named[2]) == 1 and len(numbers(trials)) == 4


def test_a_default_that_was_never_tried_comes_next(tmp_path):
    do_trials(open_trials(tmp_path, budget=3), square)
    other = {**DIMENSIONS, "rate": Number(label="rate", low=0.001, high=1.0, default=0.25, log=True)}
    trials = open_trials(tmp_path, budget=4, dimensions=other)
    do_trials(trials, square)
    assert trials.values(trials.all()[3]) == {"rate": 0.25, "steps": 5, "kind": "a"}


def test_what_is_tried_depends_on_the_seed_and_not_on_restarts(tmp_path):
    whole = open_trials(tmp_path / "whole", budget=12)
    do_trials(whole, square)
    stops = iter([False, False, True, False, True, *[False] * 12])

    def evaluate(claimed):
        if next(stops):
            raise Interrupted("stop")
        return square(claimed)

    for worker in ("0", "1"):
        with pytest.raises(Interrupted):
            do_trials(open_trials(tmp_path / "pieces", budget=12, worker=worker), evaluate)
    pieces = open_trials(tmp_path / "pieces", budget=12, worker="2")
    do_trials(pieces, evaluate)
    assert [whole.values(t) for t in whole.all()] == [pieces.values(t) for t in pieces.all()]


def test_the_budget_is_a_total_of_the_study(tmp_path):
    do_trials(open_trials(tmp_path, budget=3), square)
    do_trials(open_trials(tmp_path, budget=3), pytest.fail)
    do_trials(open_trials(tmp_path, budget=5), square)
    assert numbers(open_trials(tmp_path, budget=5)) == [0, 1, 2, 3, 4]


def test_a_worker_learns_that_more_trials_are_asked_for(tmp_path):
    trials, other = open_trials(tmp_path, budget=3), open_trials(tmp_path, budget=6, worker="1")

    def evaluate(claimed):
        if claimed.number == 2:
            other.set_total(6)
        return square(claimed)

    do_trials(trials, evaluate)
    assert numbers(trials) == [0, 1, 2, 3, 4, 5] and trials.summary().startswith("6 of 6")


def test_of_two_workers_that_tell_of_one_trial_the_first_counts(tmp_path):
    slow, quick = open_trials(tmp_path, budget=1), open_trials(tmp_path, budget=1, worker="1")
    with slow.claim() as claimed:
        seen = slow.all()  # before the other one takes it over
        quick.tell(claimed.number, Outcome(state="complete", values=(1.0,)))
        slow.all = lambda: seen
        slow.tell(claimed.number, Outcome(state="complete", values=(2.0,)))
    assert quick.all()[0].value == 1.0


def test_the_same_values_give_the_same_result_without_being_run(tmp_path):
    two = {"kind": Choice(label="kind", choices=("a", "b"), default="a")}
    ran = []

    def evaluate(claimed):
        ran.append(claimed.values["kind"])
        return Outcome(state="complete", values=(float(len(ran)),), run="r")

    trials = open_trials(tmp_path, budget=10, dimensions=two)
    do_trials(trials, evaluate)
    assert sorted(ran) == ["a", "b"]
    assert {(trials.values(t)["kind"], t.value) for t in trials.all()} == {(ran[0], 1.0), (ran[1], 2.0)}
    assert len(numbers(trials)) == 10


def test_a_failed_trial_is_replaced_and_one_that_diverged_counts(tmp_path):
    states = iter(["failed", "diverged", "complete", "complete", "complete"])

    def evaluate(claimed):
        state = next(states)
        return Outcome(state=state, values=(1.0,) if state == "complete" else ())

    trials = open_trials(tmp_path, budget=4)
    do_trials(trials, evaluate)
    assert numbers(trials) == [1, 2, 3, 4]


def test_a_worker_ends_when_trials_fail_in_a_row(tmp_path):
    with pytest.raises(TrialsFailed, match="3 trials in a row failed, the last one by: OSError: no room"):
        do_trials(open_trials(tmp_path, budget=9), lambda claimed: Outcome(state="failed", reason="OSError: no room"))


def test_of_trials_that_were_left_a_worker_takes_its_own_back_first(tmp_path):
    def of(worker):
        return open_trials(tmp_path, budget=5, worker=worker)

    with of("0").claim() as first, of("1").claim() as second:
        left = {"0": (first.number, first.values), "1": (second.number, second.values)}
    for worker in ("1", "0"):
        with of(worker).claim() as again:
            assert (again.number, again.values) == left[worker]
    with of("2").claim() as anyone, of("2").claim() as next_:
        assert {anyone.number, next_.number} == {0, 1}


def test_a_trial_that_kills_its_workers_fails_at_last(tmp_path):
    for _ in range(ATTEMPTS):
        with open_trials(tmp_path, budget=1).claim() as claimed:
            assert claimed.number == 0
    trials = open_trials(tmp_path, budget=1)
    with trials.claim() as claimed:
        assert claimed.number == 1
    assert trials.all()[0].user_attrs["outcome"]["reason"] == f"killed {ATTEMPTS} times at the same place"


def test_a_trial_that_gets_further_each_time_may_be_killed_for_ever(tmp_path):
    for step in range(3 * ATTEMPTS):
        trials = open_trials(tmp_path, budget=1)
        trials.progress_key = lambda values, step=step: f"checkpoint {step // 2}"
        with trials.claim() as claimed:
            assert claimed.number == 0


def test_where_trials_diverge_fewer_are_drawn(tmp_path):
    def evaluate(claimed):
        if claimed.values["rate"] > 0.03:  # more than half of the range, as its logarithm is drawn
            return Outcome(state="diverged")
        return Outcome(state="complete", values=(float(claimed.values["steps"]),))

    trials = open_trials(tmp_path, budget=40)
    do_trials(trials, evaluate)
    diverged = [outcome_of(trial)["state"] == "diverged" for trial in trials.all()]
    assert sum(diverged[:10]) > 3 and sum(diverged[10:]) < 10  # of 30; 19 to 26 where nothing is learned from them


def test_being_asked_to_stop_is_no_attempt(tmp_path):
    for _ in range(ATTEMPTS + 1):
        with pytest.raises(Interrupted), open_trials(tmp_path, budget=1).claim() as claimed:
            assert claimed.number == 0
            raise Interrupted("stop")


# Many workers


def take_part(folder, number, budget, log, seconds):
    """A worker of the toy problem; writes a line to `log` for each trial that it runs."""

    def evaluate(claimed):
        time.sleep(seconds)
        with open(log, "a") as file:
            file.write(f"{claimed.number}\n")
        return square(claimed)

    os.fsync = lambda file: None  # only needed for power cuts, and takes most of the time
    do_trials(open_trials(folder, budget, worker=str(number)), evaluate)


def all_there(folder, budget):
    trials = open_trials(folder, budget)
    finished = numbers(trials)
    return trials.finished() and finished == list(range(budget)) and len(trials.all()) == budget


def test_of_three_workers_one_is_killed_and_no_trial_is_lost_or_doubled(tmp_path):
    workers = [start(take_part, tmp_path, n, 24, tmp_path / f"log{n}", 0.02 * (n + 1)) for n in range(3)]
    while not (tmp_path / "log2").exists():
        time.sleep(0.02)
    os.kill(workers[2].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, -signal.SIGKILL]
    assert all_there(tmp_path, 24)


@pytest.mark.slow  # most of a minute
def test_8_workers_of_unequal_speed_two_of_them_killed_end_with_exactly_400_trials(tmp_path):
    logs = [tmp_path / f"log{n}" for n in range(8)]
    workers = [start(take_part, tmp_path, n, 400, logs[n], 0.01 * n) for n in range(8)]
    for number, after in ((7, 3), (3, 12)):
        while not logs[number].exists() or len(logs[number].read_text().split()) < after:
            time.sleep(0.02)
        os.kill(workers[number].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL if n in (3, 7) else 0 for n in range(8)]
    assert all_there(tmp_path, 400)
    done = [int(number) for log in logs for number in log.read_text().split()]
    repeated = {t.number for t in open_trials(tmp_path, 400).all() if outcome_of(t)["seconds"] == 0}
    assert set(done) | repeated == set(range(400)) and not set(done) & repeated
    assert len(done) - len(set(done)) <= 2  # a killed one may have done its trial and not told it
    shares = [len(log.read_text().split()) for log in logs]
    assert max(shares) > 2 * min(shares)


def hold_the_lock(folder):
    with locked(folder):
        (folder / "held").touch()
        time.sleep(600)


@pytest.mark.parametrize("lock", ["", "trials"])  # of the journal, and of asking
def test_a_worker_that_is_killed_while_it_holds_a_lock_blocks_nobody(tmp_path, lock):
    do_trials(open_trials(tmp_path, budget=1), square)
    holder = start(hold_the_lock, tmp_path / lock)
    while not (tmp_path / lock / "held").exists():
        time.sleep(0.02)
    other = start(take_part, tmp_path, 1, 3, tmp_path / "log", 0.0)
    time.sleep(1.5)
    assert other.is_alive()  # it waits for the lock
    began = time.monotonic()
    os.kill(holder.pid, signal.SIGKILL)
    other.join()
    assert time.monotonic() - began < 30 and other.exitcode == 0
    assert all_there(tmp_path, 3)


# The journal


@pytest.mark.parametrize("torn", [b'{"op_code":6,"wor', b"\0\0\0", b'{"op_code":4}'])
def test_a_torn_last_line_is_set_aside_and_the_search_goes_on(tmp_path, torn):
    do_trials(open_trials(tmp_path, budget=3), square)
    before = (tmp_path / JOURNAL).read_bytes()
    running = open_trials(tmp_path, budget=5)  # a worker that has read all of it
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(torn)
    do_trials(running, square)
    assert (tmp_path / JOURNAL).read_bytes().startswith(before)
    assert all(map(json.loads, (tmp_path / JOURNAL).read_text().splitlines()))
    assert (tmp_path / f"{JOURNAL}.torn").read_bytes() == torn + b"\n"
    assert all_there(tmp_path, 5)


def test_a_damaged_line_in_the_middle_is_set_aside_and_optunas_own_reader_goes_on(tmp_path):
    do_trials(open_trials(tmp_path, budget=3), square)
    running = open_trials(tmp_path, budget=4)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    spoilt = next(i for i, line in enumerate(lines) if json.loads(line).get("values"))  # of the first trial's end
    kept = lines[spoilt]
    lines[spoilt] = b"\xff" * (len(kept) - 1) + b"\n"
    (tmp_path / JOURNAL).write_bytes(b"".join(lines))
    trials = open_trials(tmp_path, budget=4)
    assert numbers(trials) == [1, 2]  # the first one's end is lost: it is under way again
    do_trials(trials, square)
    assert numbers(trials) == [0, 1, 2, 3]
    assert len(running.all()) == 4  # those that had read further keep their count
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    theirs = optuna.load_study(study_name="toy", storage=storage)
    assert [trial.value for trial in theirs.trials] == [trial.value for trial in trials.all()]


@pytest.mark.parametrize("content", [b"run,gfid\n1,2\n", b"SQLite format 3\0\x10\n\0\1", b"{}", b"no line"])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path, content):
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(ValueError, match="mine is not an Optuna journal; name another kind of storage by a URL, as s"):
        open_storage(str(tmp_path / "mine"))
    assert (tmp_path / "mine").read_bytes() == content


@pytest.mark.parametrize("content", [b'{"op_c', b"\0\0\0", b""])
def test_a_journal_whose_first_line_is_torn_begins_anew(tmp_path, content):
    (tmp_path / JOURNAL).write_bytes(content)
    do_trials(open_trials(tmp_path, budget=1), square)
    assert numbers(open_trials(tmp_path, budget=1)) == [0]


def test_a_worker_whose_journal_is_replaced_writes_nothing_more(tmp_path):
    old = open_trials(tmp_path, budget=4)
    with old.claim() as claimed:
        (tmp_path / JOURNAL).rename(tmp_path / "aside")
        for _ in range(2):  # gone, then another one
            with pytest.raises(OSError, match="was deleted or replaced"):
                old.tell(claimed.number, Outcome(state="complete", values=(1.0,)))
            new = open_trials(tmp_path, budget=4)
    assert new.all() == []


def test_lines_that_are_being_written_are_read_when_they_are_whole(tmp_path):
    journal = Journal(tmp_path / JOURNAL)
    one, two = ({"op_code": 1, "worker_id": "w", "study_id": n} for n in range(2))
    journal.append_logs([one])
    whole = (json.dumps(two) + "\n").encode()
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(whole[:9])
        file.flush()
        assert list(journal.read_logs(0)) == [one]
        file.write(whole[9:])
    assert list(journal.read_logs(1)) == [two]


def test_sqlite_is_for_one_worker(tmp_path):
    url = f"sqlite:///{tmp_path}/trials.db"
    with pytest.raises(ValueError, match=r"with 2 workers: SQLite locks its whole file, .* or give --workers 1"):
        open_storage(url, workers=2)
    storage = open_storage(url)
    trials = Trials(tmp_path / "trials", storage, open_study(storage, "toy", ["gfid"]), DIMENSIONS, 3)
    do_trials(trials, square)
    assert numbers(trials) == [0, 1, 2]


def test_a_storage_that_does_not_answer_is_one_line(tmp_path):
    for url in ("nosuch://here/there", f"sqlite:///{tmp_path}/no/such/folder/trials.db"):
        with pytest.raises(ValueError, match="--storage") as raised:
            open_storage(url)
        assert "\n" not in str(raised.value)


def test_a_lease_names_the_worker_that_has_a_trial(tmp_path):
    trials = open_trials(tmp_path, budget=2, worker="7")
    with trials.claim() as claimed:
        folder = tmp_path / "trials" / f"{claimed.number:05d}"
        assert read_json(folder / "lease.json")["pid"] == os.getpid()
        assert read_json(folder / "worker.json") == {"worker": "7", "reached": "", "attempts": 1}
