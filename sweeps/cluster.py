"""Ray itself: started inside this process or joined at an address, checked against what the trials ask for.

Tune's own output, loggers, signal handlers and snapshots are switched off here, before Ray is imported: the ledger, the
live view and the driver do their work. What Ray and Tune log goes to a file.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqrec.errors import UserError, message
from sweeps import placement
from sweeps.spec import Resources

SWITCHES = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray 2.60 leaves clusters open unless told otherwise; whoever reaches an open one runs code there.
    "RAY_AUTH_MODE": "token",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
}
WORKER_SWITCHES = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # How long a worker waits for a stopped trial to unwind before it takes the next one. Tune gives the next one up if
    # this is over, so it must outlast any epoch.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "3600",
}
NO_CLUSTER = "start one with `ray start --head`, or leave --address out to run on this machine"
TOKEN = (
    "give this process the cluster's token by RAY_AUTH_TOKEN_PATH, RAY_AUTH_TOKEN or ~/.ray/auth_token; "
    "RAY_AUTH_MODE=disabled if the cluster has none"
)
REACH_S = 10.0
SHOWN_S = 3.0
"""How long a network file system may take to show a new file."""
LOOPBACK = "127.0.0.1"
"""The only address at which Ray's processes do not listen to all networks."""
CHATTER = ("ray._private.authentication.authentication_token_setup", "ray.tune.analysis.experiment_analysis")
"""Loggers that warn of what is meant: that Ray uses its token, that Tune's result files are missing."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Beside the data, which is in there once a node."""

for _name, _value in {**SWITCHES, **WORKER_SWITCHES}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 - reads the switches when it is imported
from ray._private import ray_constants, services  # noqa: E402
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled  # noqa: E402


@contextmanager
def session(address: str | None, *, num_cpus: int | None, data_bytes: int, log_file: Path) -> Iterator[None]:
    """Ray, for as long as the block runs. address: None starts it inside this process; otherwise that of a cluster
    whose nodes need Python, Ray and the dependencies, but not this project's code, which is sent to them.

    Raises UserError if nothing answers at the address, or if it runs other versions.
    """
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("ray")
    before = logger.handlers[:], logger.level, logger.propagate
    _log_to(handler)
    try:
        own_folder = None
        on_loopback = _knock(address) if address else True
        with _loopback(on_loopback):
            if address:
                _join(address)
            else:
                own_folder = _start(num_cpus, data_bytes)
            _log_to(handler)  # again: Ray resets its logger when it starts
            try:
                yield
            finally:
                ray.shutdown()
                if own_folder:
                    shutil.rmtree(own_folder, ignore_errors=True)
    finally:
        handler.close()
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


def _log_to(handler: logging.Handler) -> None:
    logger = logging.getLogger("ray")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Messages of Ray's own processes (a worker died) are printed to stdout, past log_to_driver and every logger.
    ray._private.worker.print_to_stdstream = lambda data, **_: logger.warning("%s", " ".join(data["lines"]))


def _start(num_cpus: int | None, data_bytes: int) -> Path:
    """Ray for this process only, behind the loopback interface and its token; its folder."""
    mode = os.environ["RAY_AUTH_MODE"]
    if mode != "token":
        raise UserError(message("RAY_AUTH_MODE", mode, "token, without which the Ray started here would be open"))
    if not ray._raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        # Ray would make one and leave it in the home directory, readable to all.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    context: Any = ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=OBJECT_STORE_BYTES + 2 * data_bytes,
        _node_ip_address=LOOPBACK,
    )
    return Path(context.address_info["session_dir"])


@contextmanager
def _loopback(wanted: bool) -> Iterator[None]:
    """Ray as it is on macOS: a loopback address stays one, and its processes then listen to nothing else. On Linux Ray
    replaces such an address by the machine's in its network, and listens to all networks."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not wanted
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _knock(address: str) -> bool:
    """Whether the cluster is one behind this machine's loopback interface. Raises UserError if it is not there, or does
    not let this process in: Ray itself would try for long and then say that there is no cluster."""
    _reach(address)
    with _loopback(True), _quiet_stderr():
        try:
            ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one Ray's C++ would end the process
            head = services.canonicalize_bootstrap_address(address)
            nodes = ray._raylet.GcsClient(address=head).get_all_node_info().values() if head else ()
        except ray.exceptions.AuthenticationError:
            raise UserError(
                message("--address", address, "a Ray cluster whose token this process has", TOKEN)
            ) from None
        except (ConnectionError, ValueError, ray.exceptions.RpcError):
            head = None
    if head is None:
        raise UserError(message("--address", address, "a running Ray cluster", NO_CLUSTER))
    return any(node.node_manager_address == LOOPBACK for node in nodes)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hides what Ray's C++ writes past every logger while the block runs; what is wrong comes as an exception too."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _join(address: str) -> None:
    import seqrec
    import sweeps

    modules = [str(Path(str(package.__file__)).parent) for package in (seqrec, sweeps)]
    environment = {"py_modules": modules, "excludes": ["bundled"], "env_vars": WORKER_SWITCHES}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, configure_logging=False)
    except ConnectionError:
        raise UserError(message("--address", address, "a running Ray cluster", NO_CLUSTER)) from None
    except (RuntimeError, ValueError) as error:
        law = "a Ray cluster of the same versions"
        raise UserError(message("--address", address, law, " ".join(str(error).split())[:400])) from None


def _reach(address: str) -> None:
    """Raises UserError if nothing listens at a host:port, which Ray itself finds out in minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(message("--address", address, "auto, or the host:port of a Ray head"))
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError):
        raise UserError(message("--address", address, "a running Ray cluster", NO_CLUSTER)) from None


def serves(cpus: float, gpus: float) -> bool:
    """Whether any node that is up, busy or not, could run a trial."""
    return any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in _up())


def _up() -> list[dict[str, float]]:
    """Resources of the nodes that are up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check(cpus: float, gpus: float) -> None:
    """Raises UserError if no node could ever run a trial, which Tune would wait for in silence."""
    nodes = _up()
    if serves(cpus, gpus):
        return
    largest = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    asked = f"{cpus:g} CPUs and {gpus:g} GPUs"
    raise UserError(
        f"resources: got {asked} for a trial; expected at most what one node has ({largest or 'no nodes'})."
    )


def has_gpus() -> bool:
    """Whether any node that is up has a GPU, taken or not."""
    return any(node.get("GPU", 0) > 0 for node in _up())


def on_gpus(resources: Resources, address: str | None) -> bool:
    """Whether trials use GPUs, now that Ray is there: what `placement.on_gpus` expects, but with `auto` on a cluster
    only if it has any."""
    to_ask = resources.gpus_per_trial == "auto" and address is not None
    return placement.on_gpus(resources, address) and (not to_ask or has_gpus())


def blind_nodes(folder: Path) -> list[str]:
    """Addresses of the nodes with cores that do not see this folder of the driver's: a file put there tells."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"probe-{secrets.token_hex(8)}"
    content = secrets.token_hex(8)
    probe.write_text(content, encoding="utf-8")
    look = ray.remote(num_cpus=0)(_sees)
    try:
        places = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        answers = ray.get([look.options(scheduling_strategy=_on(node)).remote(str(probe), content) for node in places])
    finally:
        probe.unlink()
    return [node["NodeManagerAddress"] for node, sees in zip(places, answers, strict=True) if not sees]


def _sees(path: str, content: str) -> bool:
    """Whether this node has the file; a network file system is given some seconds to show it."""
    end = time.monotonic() + SHOWN_S
    while True:
        try:
            return Path(path).read_text(encoding="utf-8") == content
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)


def _on(node: dict[str, Any]) -> Any:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    return strategy(node["NodeID"], soft=False)


def slots(cpus: float, gpus: float) -> int:
    """Trials that fit on the nodes at a time, as they are now; a trial lies on one node, a part of a GPU on one GPU."""
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            by_cpu = node["Resources"].get("CPU", 0) / cpus
            cards = node["Resources"].get("GPU", 0)
            by_gpu = (int(cards) * int(1 / gpus + 1e-9) if gpus <= 1 else cards / gpus) if gpus else by_cpu
            found += int(min(by_cpu, by_gpu) + 1e-9)
    return found


def gpu_bytes() -> int:
    """Memory of the cluster's smallest GPU: one look on each node that has any."""
    places = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    look = ray.remote(num_cpus=0, num_gpus=1)(_smallest_gpu)
    smallest = min(
        int(size) for size in ray.get([look.options(scheduling_strategy=_on(node)).remote() for node in places])
    )
    if not smallest:
        hint = "resources.gpus_per_trial: 0 trains on CPUs"
        raise UserError(f"torch: sees no GPU where Ray does; expected a build for CUDA and its driver. hint: {hint}.")
    return smallest


def _smallest_gpu() -> int:
    """Bytes; 0 where torch sees none."""
    import torch

    sizes = [int(torch.cuda.get_device_properties(i).total_memory) for i in range(torch.cuda.device_count())]
    return min(sizes, default=0)
