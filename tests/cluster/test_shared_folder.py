"""Whether the nodes of a cluster share the driver's folder is looked at, not guessed: one node here sees another one in
its place, by a mount of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import cluster
from tests.cluster.conftest import ROOT

SCRIPT = """\
import contextlib, psutil, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from sweeps import cluster as ours
import ray

folder = Path(sys.argv[1])
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
join = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", made.address, "--num-cpus", "1", "--block"]
join += ["--node-ip-address", "127.0.0.9", "--disable-usage-stats", "--object-store-memory", "100000000"]
hide = 'mount -t tmpfs none "$0" && exec "$@"'
node = subprocess.Popen(["unshare", "--mount", "sh", "-c", hide, str(folder), *join], stdout=subprocess.DEVNULL)
try:
    ray.init(address=made.address, log_to_driver=False)

    end = time.monotonic() + 200
    while len([one for one in ray.nodes() if one["Alive"]]) < 2:
        assert time.monotonic() < end and node.poll() is None
        time.sleep(0.1)
    print("blind:", ours.blind_nodes(folder / "sweep"))
    print("left:", sorted(path.name for path in (folder / "sweep").iterdir()))
finally:
    family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    ray.shutdown()
    made.shutdown()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
"""


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_node_with_another_disk_in_the_place_is_named(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("mount namespaces need root")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "runs").mkdir()
    result = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "runs")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    assert "blind: ['127.0.0.9']" in result.stdout
    assert "left: []" in result.stdout


def test_what_a_node_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SHOWN_S", 0.0)
    (tmp_path / "probe").write_text("mine", encoding="utf-8")
    assert cluster._sees(str(tmp_path / "probe"), "mine")
    assert not cluster._sees(str(tmp_path / "probe"), "another driver's")
    assert not cluster._sees(str(tmp_path / "nothing"), "mine")
