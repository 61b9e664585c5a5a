"""Runs a command against a Ray cluster of a head without cores and two nodes, all on this machine, separate processes
that know nothing of this project: `--address` is added to the command.

    python benchmarks/cluster.py python -m sweeps.run search_spaces/quickstart.yaml

--lose-node-after S kills one node, as if its machine had died.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import threading

from sweeps import cluster as switches  # noqa: F401 - what Ray reads when it is imported


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each node")
    parser.add_argument("--lose-node-after", type=float, metavar="S")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command_environment = dict(os.environ)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if "RAY_AUTH_TOKEN" not in os.environ:
        # Ray has read its settings by now: start again with a token that the cluster and the command share.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **token})
    os.environ.pop("PYTHONPATH", None)
    os.chdir(tempfile.gettempdir())
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=arguments.cpus) for _ in range(arguments.nodes)]
        cluster.wait_for_nodes()
        print(f"cluster: {cluster.address}, a head and {len(nodes)} nodes of {arguments.cpus} cores", flush=True)
        process = subprocess.Popen(
            [*arguments.command, "--address", cluster.address],
            env=command_environment,
            cwd=command_environment.get("PWD"),
        )
        if arguments.lose_node_after is not None:
            loss = threading.Timer(arguments.lose_node_after, _lose, (cluster, nodes[0]))
            loss.daemon = True
            loss.start()
        return process.wait()
    finally:
        cluster.shutdown()


def _lose(cluster: object, node: object) -> None:
    print("cluster: one node is lost", flush=True)
    cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    sys.exit(main())
