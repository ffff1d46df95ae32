import os
import signal
import time
from types import SimpleNamespace

import pytest
from forked import CONTEXT

from study.core import lease as leases
from study.core.files import read_json, write_json
from study.core.lease import LeaseLost, Watcher, beating, holder, lease


def hold(folder, started, seconds):
    with lease(folder):
        started.set()
        time.sleep(seconds)


def append_exclusively(folder, name):
    for _ in range(5):
        with lease(folder, poll_seconds=0.001):
            path = folder / "writers"
            before = path.read_text() if path.exists() else ""
            time.sleep(0.002)  # a second writer would read the same text now
            path.write_text(before + name)


def start(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def test_four_processes_never_write_together(tmp_path):
    processes = [start(append_exclusively, tmp_path, name) for name in "abcd"]
    for process in processes:
        process.join()
    assert sorted((tmp_path / "writers").read_text()) == sorted("abcd" * 5)
    assert holder(tmp_path) is None


def test_a_killed_holder_is_replaced_at_once(tmp_path):
    started = CONTEXT.Event()
    process = start(hold, tmp_path, started, 60)
    assert started.wait(20)
    assert holder(tmp_path)["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    began = time.monotonic()
    with lease(tmp_path):
        assert time.monotonic() - began < 2


def foreign(folder, beat):
    """Write a lease of another machine, whose process cannot be checked from here."""
    write_json(
        folder / "lease.json",
        {"token": "theirs", "pid": 1, "start": "1", "boot": "elsewhere/1", "beat": beat, "progress": {}},
    )


def test_a_lease_of_another_machine_lives_while_its_beat_grows(tmp_path):
    watcher = Watcher(stale_seconds=0.2)
    for beat in range(4):
        foreign(tmp_path, beat)
        time.sleep(0.1)
        assert watcher.live(tmp_path) is not None
    time.sleep(0.25)
    assert watcher.live(tmp_path) is None


def test_a_stale_lease_of_another_machine_is_taken_over_whatever_the_clocks_say(tmp_path):
    foreign(tmp_path, 7)
    future = time.time() + 300  # its file server's clock is 5 minutes ahead
    os.utime(tmp_path / "lease.json", (future, future))
    with lease(tmp_path, stale_seconds=0.2, poll_seconds=0.02):
        assert read_json(tmp_path / "lease.json")["token"] != "theirs"


@pytest.mark.parametrize("skew", [-300, 0, 300])
def test_clocks_that_differ_by_5_minutes_neither_end_a_live_lease_nor_keep_a_stale_one(skew, tmp_path, monkeypatch):
    now = 1e9

    def live():
        future = now + skew  # the time of the file server and of the other machine
        os.utime(tmp_path / "lease.json", (future, future))
        return watcher.live(tmp_path) is not None

    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now + 2 * skew))
    watcher = Watcher()
    for beat in range(4):
        foreign(tmp_path, beat)
        assert live()
        now += leases.STALE_SECONDS - 1
        assert live()  # late, as on a busy file server
    now += 1
    assert not live()


def test_a_reboot_releases_the_leases_of_that_machine_only(tmp_path, monkeypatch):
    for own, holders, gone in (
        ("node1/new/pids", "node1/old/pids", True),
        ("node2/new/pids", "node1/old/pids", False),
        ("localhost/new/pids", "localhost/old/pids", False),  # a name that any machine may have
        ("node1/new/pids", "node1/new/others", False),  # another container: its processes are not visible
    ):
        monkeypatch.setattr(leases, "_boot", lambda own=own: own)
        foreign(tmp_path, 1)
        write_json(tmp_path / "lease.json", {**read_json(tmp_path / "lease.json"), "boot": holders})
        assert (holder(tmp_path) is None) == gone, (own, holders)


@pytest.mark.parametrize("damage", [{"boot": None}, {"boot": "node1"}])
def test_a_damaged_lease_counts_as_held(damage, tmp_path):
    """Whether its holder is gone cannot be known; a stale heartbeat releases it."""
    foreign(tmp_path, 1)
    content = {**read_json(tmp_path / "lease.json"), **damage}
    write_json(tmp_path / "lease.json", {key: value for key, value in content.items() if value is not None})
    assert holder(tmp_path) is not None


def test_a_holder_whose_lease_was_taken_stops_and_leaves_the_new_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    with lease(tmp_path) as held:
        held.check()
        foreign(tmp_path, 1)
        time.sleep(0.3)
        with pytest.raises(LeaseLost):
            held.check()
    assert read_json(tmp_path / "lease.json")["token"] == "theirs"


def test_what_is_shown_of_a_lease_of_another_machine_goes_by_its_files_time(tmp_path):
    assert beating(tmp_path) is None
    foreign(tmp_path, 1)
    assert beating(tmp_path)["token"] == "theirs"
    for age, seems_to_run in ((leases.STALE_SECONDS - 5, True), (leases.STALE_SECONDS + 5, False)):
        beat = time.time() - age
        os.utime(tmp_path / "lease.json", (beat, beat))
        assert (beating(tmp_path) is not None) == seems_to_run
    with lease(tmp_path, stale_seconds=0.1, poll_seconds=0.02):
        os.utime(tmp_path / "lease.json", (1, 1))
        assert beating(tmp_path)["pid"] == os.getpid()  # it may be suspended
