"""A real Slurm of one node on this machine, for tests and for trying things out; needs root and Debian's packages.

    python tests/slurm/cluster.py install           # the packages, with apt-get
    eval "$(python tests/slurm/cluster.py up)"      # sets SLURM_CONF: now sbatch, squeue, scancel and the sweep work
    python tests/slurm/cluster.py status
    python tests/slurm/cluster.py down

Everything (configuration, keys, queue, logs, database) is in one folder; `up` begins with an empty queue and an empty
database, `down` is a power cut that leaves the logs. There are two partitions on the same node: `low`, the default,
whose jobs are preempted and requeued, and `high`, whose jobs preempt them. A third, `wide`, has a second node beside
it, for jobs of several nodes: another slurmd on this machine. CPUs and memory are declared, not had and not enforced:
several small jobs run at once on any machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("/tmp/slurm-of-one-node")
CPUS = 8
MEMORY_MB = 65_536
GRACE_SECONDS = 5  # between SIGTERM and the end of a preempted job
REQUEUE_SECONDS = 5  # and one more, until a requeued job starts again: the least that Slurm takes, by default 120
START_SECONDS = 60.0  # a busy machine included

PROGRAMS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}
ACCOUNTING_PROGRAMS = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
MARK = "SLURM_OF_ONE_NODE"  # in the environment of every daemon, which `down` finds by it, and in the folder

SLURM_CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_seconds}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
FirstJobId={first_job}

# what a container and a small machine can do
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={memory_per_cpu}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1

# seconds where Slurm would wait for minutes
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=5

{accounting}
NodeName=DEFAULT CPUs={cpus} RealMemory={memory} State=UNKNOWN
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port}
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={other_port}
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} MaxTime=INFINITE
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
PartitionName=wide Nodes={host},{host}-2 PriorityTier=1 PreemptMode=OFF MaxTime=INFINITE
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge.socket
"""

SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageLoc=slurm
StorageUser=slurm
StoragePass={password}
"""

DATABASE_SQL = """\
CREATE DATABASE slurm;
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
"""


class Unusable(RuntimeError):
    """The cluster cannot be brought up; one line that says why."""


def obstacle(accounting: bool = False) -> str:
    """Why this machine cannot have the cluster, in one line; '' when it can."""
    if not Path("/etc/debian_version").exists():
        return "the Slurm of one node is made of Debian's packages, and this is not Debian"
    if os.geteuid() != 0:
        return "the Slurm of one node needs root, because slurmd does"
    needed = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    if missing := sorted({package for program, package in needed.items() if _which(program) is None}):
        return f"not installed: {', '.join(missing)}; `python tests/slurm/cluster.py install` brings them"
    return ""


def install(accounting: bool = False) -> None:
    """Bring the packages with apt-get."""
    packages = sorted({*PROGRAMS.values(), *(ACCOUNTING_PROGRAMS.values() if accounting else ())})
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environment, stdout=sys.stderr)
        if done.returncode:
            raise Unusable(f"apt-get {command[0]} failed with exit code {done.returncode}")


def up(folder: Path = FOLDER, accounting: bool = False) -> Path:
    """The path of slurm.conf of a cluster that takes jobs: the one that is up in `folder`, or a fresh one.

    Raises:
        Unusable: the folder holds something else, or a daemon did not start. Ask `obstacle` first.
    """
    folder = folder.resolve()
    conf = folder / "slurm.conf"
    if is_up(folder):
        if (folder / "slurmdbd.conf").exists() != accounting:
            found = "without" if accounting else "with"
            raise Unusable(f"the cluster in {folder} is up {found} accounting: down first")
        return conf
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise Unusable(f"{folder} holds something else: choose another --folder")
    down(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for place in (folder, folder / "state", folder / "spool"):
        place.mkdir(mode=0o755, parents=True)
    (folder / MARK).touch()
    try:
        _start_daemons(folder, accounting)
    except BaseException:
        down(folder)
        raise
    return conf


def down(folder: Path = FOLDER) -> None:
    """End every daemon and every job of the cluster in `folder`, as a power cut would; the logs stay."""
    deadline = time.monotonic() + START_SECONDS
    while left := _processes(folder.resolve()):
        if time.monotonic() > deadline:
            raise Unusable(f"processes that do not end: {left}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def is_up(folder: Path = FOLDER) -> bool:
    """Whether every daemon of the cluster in `folder` runs and slurmctld answers."""
    folder = folder.resolve()
    daemons = {"munged", "slurmctld", "slurmd"}
    if (folder / "slurmdbd.conf").exists():
        daemons |= {"mariadbd", "slurmdbd"}
    if not daemons <= set(_processes(folder).values()):
        return False  # told at once: without slurmctld a command tries for a long time
    return _ask(folder, "scontrol", "ping").returncode == 0


def _start_daemons(folder: Path, accounting: bool) -> None:
    """Write what the daemons read and start each when the ones before it answer."""
    ctld_port, node_port, other_port, dbd_port = _free_ports(4)
    host = socket.gethostname().split(".")[0]
    conf = SLURM_CONF.format(
        folder=folder,
        host=host,
        ctld_port=ctld_port,
        node_port=node_port,
        other_port=other_port,
        requeue_seconds=REQUEUE_SECONDS,
        first_job=int(time.time()) % 60_000_000,  # submitit names files by job: no two clusters share a number
        cpus=CPUS,
        memory=MEMORY_MB,
        memory_per_cpu=MEMORY_MB // CPUS,
        grace=GRACE_SECONDS,
        accounting=ACCOUNTING.format(folder=folder, dbd_port=dbd_port) if accounting else "",
    )
    (folder / "slurm.conf").write_text(conf)
    _write_secret(folder / "munge.key", secrets.token_bytes(128))
    munge = [
        "munged", "--foreground", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", "--force",
    ]  # fmt: skip
    _start(folder, munge, (folder / "munge.socket").exists)
    if accounting:
        _start_accounting(folder, dbd_port)
    _start(folder, ["slurmctld", "-D"], lambda: _ask(folder, "scontrol", "ping").returncode == 0)
    for node in (host, f"{host}-2"):
        (folder / "spool" / node).mkdir()
        state = ("sinfo", "--noheader", f"--nodes={node}", "--partition=wide", "--format=%T")
        _start(folder, ["slurmd", "-D", "-N", node], lambda state=state: _ask(folder, *state).stdout.strip() == "idle")


def _start_accounting(folder: Path, dbd_port: int) -> None:
    (port,), password = _free_ports(1), secrets.token_hex(16)
    conf = SLURMDBD_CONF.format(folder=folder, dbd_port=dbd_port, database_port=port, password=password)
    _write_secret(folder / "slurmdbd.conf", conf.encode())
    _write_secret(folder / "database.sql", DATABASE_SQL.format(password=password).encode())
    options = ["--no-defaults", "--user=root", f"--datadir={folder}/database", "--innodb-log-file-size=8M"]
    make = ["mariadb-install-db", *options, "--skip-test-db", "--auth-root-authentication-method=normal"]
    if _launch(folder, make).wait():
        raise Unusable(f"mariadb-install-db failed: see {folder}/mariadb-install-db.out")
    serve = [
        "mariadbd", *options, f"--socket={folder}/database.socket", f"--pid-file={folder}/mariadbd.pid",
        "--bind-address=127.0.0.1", f"--port={port}", f"--init-file={folder}/database.sql",
    ]  # fmt: skip
    _start(folder, serve, lambda: _listens(port))
    add = ("sacctmgr", "-i", "add", "cluster", "one")
    _start(folder, ["slurmdbd", "-D"], lambda: _ask(folder, *add).returncode == 0)


def _start(folder: Path, command: list[str], answers: Callable[[], bool]) -> None:
    """Start a daemon and wait until `answers()` is true."""
    name, daemon = command[0], _launch(folder, command)
    deadline = time.monotonic() + START_SECONDS
    while not answers():
        if daemon.poll() is not None:
            raise Unusable(f"{name} ended with exit code {daemon.returncode}: see {folder}/{name}.out")
        if time.monotonic() > deadline:
            raise Unusable(f"{name} does not answer after {START_SECONDS:.0f} s: see {folder}/{name}.out")
        time.sleep(0.1)


def _launch(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """A process away from this terminal, marked as the cluster's."""
    with open(folder / f"{command[0]}.out", "ab") as output:
        return subprocess.Popen(
            [_which(command[0]) or command[0], *command[1:]],
            env={**_environment(folder), MARK: str(folder)},
            cwd=folder,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _ask(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=_environment(folder), capture_output=True, text=True)


def _environment(folder: Path) -> dict[str, str]:
    """This process's, with nothing of a Slurm that it may itself be a job of."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SUBMITIT"))}
    return {**kept, "SLURM_CONF": str(folder / "slurm.conf")}


def _processes(folder: Path) -> dict[int, str]:
    """Daemons of the cluster, its jobs, and what descends from either, by name; never this process or its parents."""
    mark, conf = f"{MARK}={folder}".encode(), f"SLURM_CONF={folder}/slurm.conf".encode()
    parents, names, ours = {}, {}, set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, _, numbers = (place / "stat").read_text().partition("(")[2].rpartition(")")
            variables = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        state, parent = numbers.split()[:2]
        if state in "ZX":
            continue
        pid = int(place.name)
        parents[pid], names[pid] = int(parent), name
        if mark in variables or (conf in variables and any(v.startswith(b"SLURM_JOB_ID=") for v in variables)):
            ours.add(pid)

    def ancestors(pid: int) -> set[int]:
        above = set()
        while (pid := parents.get(pid, 0)) and pid not in above:
            above.add(pid)
        return above

    spared = {os.getpid(), *ancestors(os.getpid())}
    return {pid: names[pid] for pid in sorted(parents) if pid not in spared and ours & {pid, *ancestors(pid)}}


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin")


def _write_secret(path: Path, content: bytes) -> None:
    """Munged and slurmdbd refuse what others may read."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("install", "up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of everything that is written (%(default)s)")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and a database, for sacct")
    options = parser.parse_args()
    try:
        if options.action == "install" and "not installed" in obstacle(options.accounting):
            install(options.accounting)
        if reason := obstacle(options.accounting):
            raise Unusable(reason)
        if options.action == "install":
            return 0
        if options.action == "up":
            print(f"export SLURM_CONF={up(options.folder, options.accounting)}")
        elif options.action == "down":
            down(options.folder)
        elif is_up(options.folder):
            folder = options.folder.resolve()
            print(f"export SLURM_CONF={folder}/slurm.conf")
            print(_ask(folder, "sinfo").stdout + _ask(folder, "squeue").stdout, end="")
        else:
            print(f"down: {options.folder}")
            return 1
    except Unusable as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
