"""docker/ held against what can be known without an engine: files, the programs' flags, what must stay secret."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    return tree["services"]


def _words(command: str | list[str]) -> list[str]:
    """A service's command, a shell's -c taken apart."""
    words = shlex.split(command) if isinstance(command, str) else command
    return shlex.split(words[-1]) if words[:2] == ["sh", "-c"] else words


def test_only_this_machine_reaches_the_ports(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_no_secret_stands_in_the_files(services: dict[str, dict[str, Any]]) -> None:
    """Passwords and tokens come from files, in a folder that neither git nor the image takes."""
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN", variable):
                assert str(value).startswith("/run/secrets/"), (
                    f"{name}: {variable}: got {value}; expected a secret's file."
                )
    for secret in yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["secrets"].values():
        assert Path(secret["file"]).parent == Path("secrets")
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "!docker" not in _allowed()


def test_every_ray_process_knows_the_token(services: dict[str, dict[str, Any]]) -> None:
    ray = [service for name, service in services.items() if name.startswith("ray") or name == "sweep"]
    assert len(ray) == 3
    for service in ray:
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert Path(service["environment"]["RAY_AUTH_TOKEN_PATH"]).name in service["secrets"]


def test_who_is_waited_for_can_say_that_it_is_ready(services: dict[str, dict[str, Any]]) -> None:
    waited = {(name, other) for name, service in services.items() for other in service.get("depends_on", {})}
    assert ("sweep", "mlflow") in waited
    for name, other in waited:
        assert services[name]["depends_on"][other]["condition"] == "service_healthy"
        assert "healthcheck" in services[other], f"{name} waits for {other}, which has no healthcheck."


def test_mlflow_allows_the_names_it_is_called_by(services: dict[str, dict[str, Any]]) -> None:
    words = _words(services["mlflow"]["command"])
    allowed = words[words.index("--allowed-hosts") + 1].split(",")
    assert services["sweep"]["environment"]["TRACKING_URI"].removeprefix("http://") in allowed
    assert {"localhost:${MLFLOW_PORT:-5000}", "127.0.0.1:${MLFLOW_PORT:-5000}", "127.0.0.1:5000"} <= set(allowed)


@pytest.mark.slow
def test_the_programs_know_their_flags(services: dict[str, dict[str, Any]]) -> None:
    script = (DOCKER / "sweep.sh").read_text(encoding="utf-8")
    joins = re.search(r"^ray start .*$", script, re.MULTILINE)
    assert joins
    head, worker, mlflow = (services[name]["command"] for name in ("ray-head", "ray-worker", "mlflow"))
    server = _words(mlflow)
    runs = re.search(r"python -m (sweeps\.run .*)$", script, re.MULTILINE)
    assert runs
    calls = {
        "python -m sweeps.run": shlex.split(runs[1]),
        "ray start": [*_words(head), *_words(worker), *shlex.split(joins[0])],
        "ray health-check": services["ray-head"]["healthcheck"]["test"],
        "mlflow server": server[server.index("mlflow") :],
    }
    for program, words in calls.items():
        name, *command = program.split()
        binary = Path(sys.executable).with_name(name)
        text = subprocess.run([binary, *command, "--help"], capture_output=True, text=True, check=True).stdout
        known, used = (set(re.findall(r"--[a-z][a-z-]+", part)) for part in (text, " ".join(words)))
        assert used, program
        assert used <= known, f"{program}: unknown {', '.join(sorted(used - known))}"


def test_the_image_takes_what_exists_and_runs_as_nobody_special() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "seqrec", "sweeps", "search_spaces"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), f"docker/Dockerfile: COPY {path}: there is no such file."
        assert f"!{path}" in _allowed(), f"docker/Dockerfile: COPY {path}: .dockerignore leaves it out."
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("root", "0")
    assert any("--constraint constraints.txt" in line for line in lines)


def _allowed() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    return [line for line in lines if line.startswith("!")]


def test_the_entry_script_is_a_script() -> None:
    script = DOCKER / "sweep.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(script)], check=True)
    silent = subprocess.run(["sh", str(script)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert silent.returncode != 0
    assert "RAY_HEAD" in silent.stderr
