"""What is installed is what is needed: pins for every dependency, and a wheel with the data and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from seqrec.config import NUMERICS_VERSION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    return {canonicalize_name(name): version for name, version in pins}


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        pinned = _pins().get(canonicalize_name(requirement.name))
        assert pinned is not None, f"constraints.txt: {requirement.name} is missing. hint: make constraints"
        assert "+" not in pinned, f"constraints.txt: {requirement.name}: got {pinned}; expected no local tag."
        assert requirement.specifier.contains(pinned, prereleases=False), f"{requirement}: pinned to {pinned}."


def test_the_wheel_takes_packages_and_their_data() -> None:
    """Every folder with code is a package, and every file that is no code is named as package data."""
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["seqrec*", "sweeps*"]
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("seqrec", "sweeps"):
        folder = ROOT / package
        named = {path for pattern in data[package] for path in folder.glob(pattern)}
        for path in sorted(folder.rglob("*")):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            if path.suffix == ".py":
                assert path.with_name("__init__.py").exists(), f"{path.relative_to(ROOT)}: its folder is no package."
            else:
                assert path in named, f"{path.relative_to(ROOT)}: not in pyproject's package-data."


def test_what_is_not_ours_is_named() -> None:
    """Each folder of bundled work stands in NOTICE, with where it comes from."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for folder in ("seqrec/data/bundled", "sweeps/assets"):
        assert any((ROOT / folder).iterdir())
        assert f"({folder}/)" in notice
    assert not any("benchmarks" in name for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert "(benchmarks/data/ce_minus_cells.csv)" in notice
    assert "2890e6c3ff6a22c6699fc19cb863b66786c1cde4" in notice
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[0]


def test_the_changelog_knows_the_numerics_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = [int(number) for number in re.findall(r"^- Version (\d+)", text, re.MULTILINE)]
    assert max(versions) == NUMERICS_VERSION
