"""Machines to break: Ray nodes of one cluster, each in a network namespace of its own where that is possible.

With namespaces (Linux, root, iproute2) every host has its own interface, addresses and host name, and its cable can be
pulled. Without, the hosts are separate raylets on addresses of the loopback network, whose processes can be killed all
the same. Every process of a host carries the host's mark in its environment: that is how all of them are found again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MARK = "SEQREC_SOAK_HOST"
ROOT = Path(__file__).parents[2]
PORT = 6379
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
QUICK_DETECTION = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""For the head: a node that does not answer is given up within ten seconds (Ray's own: up to a minute)."""


def without_namespaces() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need the command ip (iproute2)"
    probe = f"seqrec-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not to be had: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


def wait(condition: Callable[[], bool], what: str, patience_s: float = 180.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for: {what}"
        time.sleep(0.2)


def marked(mark: str) -> list[int]:
    """Ids of all living processes whose environment holds the mark."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if entry in (folder / "environ").read_bytes() and not _is_zombie(folder):
                found.append(int(folder.name))
    return found


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(") ")[2].startswith("Z")


def send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Host:
    """One machine: processes started on it see its network alone."""

    def __init__(self, network: Network, number: int) -> None:
        self.name = f"{network.name}-{number}"
        self.mark = self.name
        self.namespace = self.name if network.separate else ""
        self.address = f"10.77.{network.subnet}.{number}" if network.separate else f"127.77.{network.subnet}.{number}"
        self.environment = {**network.environment, MARK: self.mark, "PYTHONPATH": str(ROOT)}
        self._log = network.directory / f"{self.name}.log"
        self._network = network
        self._ray = network.directory / f"ray-{number}"
        self._ray.mkdir()
        self._started: list[subprocess.Popen[str]] = []

    def popen(self, command: Sequence[str], *, output: Path | None = None) -> subprocess.Popen[str]:
        """Start a command here, in a session of its own; its output goes to a file, if not given the host's log."""
        if self.namespace:
            # With a host name of its own, and a folder of its own where all nodes think Ray's is.
            own = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && exec "$@"'
            unshared = ["unshare", "--uts", "sh", "-c", own, self.name, str(self._ray), str(self._network.temporary)]
            command = ["ip", "netns", "exec", self.namespace, *unshared, *command]
        with (output or self._log).open("a") as out:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self) -> str:
        """The host's log so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def cable(self, plugged: bool) -> None:
        """Pull the network cable, or put it back: the bridge's end of the pair, as a switch would see it."""
        assert self.namespace, "a host without a namespace has no cable"
        state = "up" if plugged else "down"
        subprocess.run(["ip", "link", "set", _port(self.name), state], check=True)

    def pids(self) -> list[int]:
        """All processes here. Some of Ray's write their title over their environment, the mark with it."""
        found = set(marked(self.mark))
        if self.namespace:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace], check=True, capture_output=True, text=True)
            found.update(map(int, listed.stdout.split()))
        return sorted(found)

    def trials(self) -> list[int]:
        """Ids of the processes that have a trial or are kept for the next one."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if (Path("/proc") / str(pid) / "cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                    found.append(pid)
        return found

    def die(self) -> None:
        """As if its power had failed. Again and again until no process is left: they start others while they die."""
        deadline = time.monotonic() + 30
        while pids := self.pids():
            assert time.monotonic() < deadline, f"processes {pids} of {self.name} do not die"
            send(pids, signal.SIGKILL)
            time.sleep(0.1)
        for process in self._started:
            process.wait(10)


class Network:
    """A bridge with hosts on it, removed with everything that runs there when the block ends."""

    def __init__(self, directory: Path, *, separate: bool, quick_detection: bool = False) -> None:
        self.directory = directory
        self.separate = separate
        self.subnet = 1 + os.getpid() % 250
        self.name = f"sk{os.getpid()}"
        self.temporary = Path("/tmp") / self.name
        """Ray's folder on every host; short, for names of sockets lie under it."""
        self.gateway = f"10.77.{self.subnet}.254" if separate else "127.0.0.1"
        """Address of this machine for the hosts: where stores listen."""
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # Ray's 15 would starve the workers' starts beside drivers and servers, all on this one machine.
            "RAY_worker_niceness": "0",
            **(QUICK_DETECTION if quick_detection else {}),
        }
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            self.environment.pop(name, None)
        self.hosts: dict[int, Host] = {}

    def __enter__(self) -> Network:
        self.temporary.mkdir()
        if self.separate:
            _ip("link", "add", self.name, "type", "bridge")
            _ip("addr", "add", f"{self.gateway}/24", "dev", self.name)
            _ip("link", "set", self.name, "up")
        return self

    def host(self, number: int) -> Host:
        """The host with this number (its address's last), made if it is new."""
        if number in self.hosts:
            return self.hosts[number]
        made = self.hosts[number] = Host(self, number)
        if made.namespace:
            inside = ("-n", made.namespace)
            _ip("netns", "add", made.namespace)
            _ip("link", "add", _port(made.name), "type", "veth", "peer", "name", "eth0", "netns", made.namespace)
            _ip("link", "set", _port(made.name), "master", self.name, "up")
            _ip(*inside, "addr", "add", f"{made.address}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "route", "add", "default", "via", self.gateway)
        return made

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.die()
        for host in self.hosts.values():
            if host.namespace:
                subprocess.run(["ip", "link", "del", _port(host.name)], check=False)
                subprocess.run(["ip", "netns", "del", host.namespace], check=False)
        if self.separate:
            subprocess.run(["ip", "link", "del", self.name], check=False)
        shutil.rmtree(self.temporary, ignore_errors=True)


def _port(name: str) -> str:
    return f"v{name}"[:15]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Cluster:
    """A head without cores and workers with one core each, as raylets of their own, with Ray's token."""

    def __init__(self, network: Network, workers: int) -> None:
        self.network = network
        self.head = network.host(1)
        self.workers = [network.host(2 + number) for number in range(workers)]
        self.address = f"{self.head.address}:{PORT}"
        self._rays: dict[Host, subprocess.Popen[str]] = {}

    def start(self) -> Cluster:
        folder = f"--temp-dir={self.network.temporary}"
        self._start(self.head, "--num-cpus=0", "--head", f"--port={PORT}", "--include-dashboard=false", folder)
        for worker in self.workers:
            self.join(worker)
        return self

    def join(self, worker: Host) -> None:
        """Start Ray on a worker's host, as when a machine has come back; returns when the node is up."""
        self._start(worker, "--num-cpus=1", f"--address={self.address}")

    def is_up(self, worker: Host) -> bool:
        """Whether Ray runs there; a node that its cluster has given up ends itself when it hears of it."""
        return self._rays[worker].poll() is None

    def _start(self, host: Host, *options: str) -> None:
        said = len(host.said())
        command = [*RAY, "start", "--block", f"--node-ip-address={host.address}", *options]
        process = self._rays[host] = host.popen([*command, "--object-store-memory=100000000", "--disable-usage-stats"])

        def started() -> bool:
            assert process.poll() is None, host.said()[-2000:]
            return "Ray runtime started" in host.said()[said:]

        wait(started, f"Ray on {host.name}")


@contextlib.contextmanager
def cluster(directory: Path, *, separate: bool, workers: int = 2, quick_detection: bool = False) -> Iterator[Cluster]:
    """A running cluster; nothing of it is left behind the block."""
    with Network(directory, separate=separate, quick_detection=quick_detection) as network:
        yield Cluster(network, workers).start()
