"""A real Slurm of one node on this machine, for tests and for trying things out; needs root and Debian's packages.

    eval "$(python tests/slurm/cluster.py up)"      # sets SLURM_CONF: now sbatch, squeue, scancel and the sweep work
    python tests/slurm/cluster.py status
    python tests/slurm/cluster.py down

Everything (configuration, keys, queue, logs, database) is in one folder; `up` begins with an empty queue and an empty
database, `down` is a power cut that leaves the logs. There are two partitions on the same node: `low`, the default,
whose jobs are preempted and requeued, and `high`, whose jobs preempt them. CPUs and memory are declared, not had and
not enforced: several small jobs run at once on any machine.
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
SlurmdPort={slurmd_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_seconds}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
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
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} MaxTime=INFINITE
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
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
StoragePort={db_port}
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
        return f"not installed: {', '.join(missing)}; `up --install` brings them"
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
    if ready(folder):
        if (folder / "slurmdbd.conf").exists() != accounting:
            raise Unusable(
                f"the cluster in {folder} is up {'without' if accounting else 'with'} accounting: down first"
            )
        return conf
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise Unusable(f"{folder} holds something else: choose another --folder")
    down(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for place in (folder, folder / "state", folder / "spool"):
        place.mkdir(mode=0o755, parents=True)
    (folder / MARK).touch()
    _configure(folder, accounting)
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


def ready(folder: Path = FOLDER) -> bool:
    """Whether the cluster in `folder` takes jobs and can start them."""
    conf = folder.resolve() / "slurm.conf"
    if not {"munged", "slurmctld", "slurmd"} <= set(_processes(folder.resolve()).values()):
        return False  # asked at once: without slurmctld the commands try for a long time
    answer = _ask(conf, "sinfo", "--noheader", "--partition=low", "--format=%T")
    return answer.returncode == 0 and answer.stdout.strip() in ("idle", "mixed", "allocated", "completing")


def _configure(folder: Path, accounting: bool) -> None:
    ctld_port, slurmd_port, dbd_port, db_port = _free_ports(4)
    values = {
        "folder": folder, "host": socket.gethostname().split(".")[0], "ctld_port": ctld_port,
        "slurmd_port": slurmd_port, "dbd_port": dbd_port, "db_port": db_port, "password": secrets.token_hex(16),
        "cpus": CPUS, "memory": MEMORY_MB, "memory_per_cpu": MEMORY_MB // CPUS, "grace": GRACE_SECONDS,
        "requeue_seconds": REQUEUE_SECONDS,
        "first_job": int(time.time()) % 60_000_000,  # submitit names files by job: no two clusters share a number
    }  # fmt: skip
    _write(folder / "munge.key", secrets.token_bytes(128))
    if accounting:
        _write(folder / "slurmdbd.conf", SLURMDBD_CONF.format(**values).encode())
        _write(folder / "database.sql", DATABASE_SQL.format(**values).encode())
        _write(folder / "database.port", str(db_port).encode())
        values["accounting"] = ACCOUNTING.format(**values)
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**{"accounting": "", **values}))


def _start_daemons(folder: Path, accounting: bool) -> None:
    """Start each daemon when the ones before it answer."""
    conf = folder / "slurm.conf"
    munge = [
        "munged", "--foreground", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed", "--force",
    ]  # fmt: skip
    _start(folder, munge, (folder / "munge.socket").exists)
    if accounting:
        database = ["--no-defaults", "--user=root", f"--datadir={folder}/database", "--innodb-log-file-size=8M"]
        with open(folder / "mariadb-install-db.log", "wb") as log:
            make = ["mariadb-install-db", *database, "--skip-test-db", "--auth-root-authentication-method=normal"]
            if subprocess.run(_command(make), env=_environment(folder), stdout=log, stderr=log).returncode:
                raise Unusable(f"mariadb-install-db failed: see {log.name}")
        port = (folder / "database.port").read_text()
        server = [
            "mariadbd", *database, f"--socket={folder}/database.socket", f"--pid-file={folder}/mariadbd.pid",
            "--bind-address=127.0.0.1", f"--port={port}", f"--init-file={folder}/database.sql",
            "--innodb-flush-log-at-trx-commit=0",
        ]  # fmt: skip
        _start(folder, server, lambda: _listens(int(port)))
        _start(
            folder, ["slurmdbd", "-D"], lambda: _ask(conf, "sacctmgr", "-i", "add", "cluster", "one").returncode == 0
        )
    _start(folder, ["slurmctld", "-D"], lambda: _ask(conf, "scontrol", "ping").returncode == 0)
    _start(folder, ["slurmd", "-D"], lambda: ready(folder))


def _start(folder: Path, command: list[str], answers) -> None:
    """Start a daemon, away from this terminal, and wait until `answers()` is true."""
    name = command[0]
    with open(folder / f"{name}.out", "wb") as output:
        daemon = subprocess.Popen(
            _command(command), env=_environment(folder), cwd=folder, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not answers():
        if daemon.poll() is not None:
            raise Unusable(f"{name} ended with exit code {daemon.returncode}: see {folder}/{name}.out and .log")
        if time.monotonic() > deadline:
            raise Unusable(f"{name} does not answer after {START_SECONDS:.0f} s: see {folder}/{name}.out and .log")
        time.sleep(0.1)


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


def _ask(conf: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**_environment(conf.parent), "SLURM_CONF": str(conf)}
    environment.pop(MARK)
    return subprocess.run(_command(list(command)), env=environment, capture_output=True, text=True)


def _environment(folder: Path) -> dict[str, str]:
    """For daemons: nothing of a Slurm that this process may itself be a job of."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SUBMITIT"))}
    return {**kept, "SLURM_CONF": str(folder / "slurm.conf"), MARK: str(folder)}


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin")


def _command(command: list[str]) -> list[str]:
    return [_which(command[0]) or command[0], *command[1:]]


def _write(path: Path, content: bytes) -> None:
    """Write a secret: munged and slurmdbd refuse what others may read."""
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
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of everything that is written (%(default)s)")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and a database, for sacct")
    parser.add_argument("--install", action="store_true", help="bring missing packages with apt-get first")
    options = parser.parse_args()
    try:
        if options.install and "not installed" in obstacle(options.accounting):
            install(options.accounting)
        if reason := obstacle(options.accounting):
            raise Unusable(reason)
        if options.action == "up":
            print(f"export SLURM_CONF={up(options.folder, options.accounting)}")
        elif options.action == "down":
            down(options.folder)
        else:
            if not ready(options.folder):
                print(f"down: {options.folder}")
                return 1
            conf = options.folder.resolve() / "slurm.conf"
            print(f"export SLURM_CONF={conf}")
            print(_ask(conf, "sinfo").stdout + _ask(conf, "squeue").stdout, end="")
    except Unusable as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
