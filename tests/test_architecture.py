"""The import law of docs/architecture.md, read from that document and held against the imports of every module.

The document is the authority: a module or an owner added there is enforced here without another edit.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("seqrec", "sweeps")
HEAVY = ("torch", "ray", "triton")
LAZY = {("sweeps.run", "sweeps.execute")}
"""The one import inside a function that may lead from a light module to a heavy one: the sweep begins there."""
MOST_LINES = 320
PATHS_OF_A_MACHINE = re.compile(r"(?<![\w.~}])/(?:home|root|Users|work)/\w")


@dataclass(frozen=True)
class Import:
    source: str
    """The importing module."""
    line: int
    target: str
    """The imported module, dotted; the project's own are resolved to modules that exist."""
    lazy: bool
    """Inside a function, or for the type checker alone."""

    @property
    def place(self) -> str:
        return f"{modules()[self.source].relative_to(ROOT)}:{self.line}"

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    return tuple(
        edge for name, path in modules().items() for edge in imports_of(name, path.read_text(encoding="utf-8"))
    )


def imports_of(name: str, text: str) -> Iterator[Import]:
    """Imports of one module; `from package import module` names the module."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, child.lineno, alias.name, lazy)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}:{child.lineno}: a relative import; expected the full name."
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield Import(name, child.lineno, full if full in modules() else str(child.module), lazy)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, True)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, lazy or inside)

    yield from walk(ast.parse(text), False)


def parents(name: str) -> Iterator[str]:
    """A module and the packages whose __init__ runs before it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def path_to(start: str, libraries: tuple[str, ...]) -> list[str] | None:
    """The shortest chain of imports, as Python loads them, from a module to one of these libraries, if there is one."""
    queue = deque([[name] for name in parents(start) if name in modules()])
    seen = {chain[-1] for chain in queue}
    while queue:
        chain = queue.popleft()
        for edge in imports():
            if edge.source != chain[-1] or edge.lazy:
                continue
            if edge.library in libraries:
                return [*chain, edge.library]
            for name in parents(edge.target):
                if name in modules() and name not in seen:
                    seen.add(name)
                    queue.append([*chain, name])
    return None


# ------------------------------------------------------------------------------------------------------- the document


@cache
def law() -> str:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Import law")[2].partition("\n## ")[0]
    assert section, "docs/architecture.md: section '## Import law' is missing."
    return " ".join(section.split())


@cache
def light() -> tuple[str, ...]:
    """Modules that load neither torch nor ray: full names, or short ones in brackets behind their package."""
    listed = law().partition("No torch and no ray in:")[2].partition("Not even indirectly")[0]
    names, package = [], ""
    for name in re.findall(r"`([\w.]+)`", listed):
        if "." in name:
            package = name
        names.append(name if "." in name else f"{package}.{name}")
    return (*names, "sweeps.run")


@cache
def owners() -> dict[str, tuple[str, ...]]:
    """Library -> the modules and packages that alone may import it."""
    found: dict[str, tuple[str, ...]] = {}
    for libraries, places in re.findall(r"\*\*([\w ]+)\*\* only in ((?:`[^`]+`(?:, )?)+)", law()):
        names: list[str] = []
        for place in re.findall(r"`([^`]+)`", places):
            stem, _, inside = place.partition("{")
            names += [(stem + part).replace("/", ".") for part in inside.rstrip("}").split(",")]
        found |= {library: tuple(names) for library in libraries.split(" and ")}
    return found


def test_the_document_is_understood() -> None:
    assert len(light()) >= 15
    assert {"ray", "mlflow", "yaml", "pandas", "pyarrow", "matplotlib"} <= owners().keys()
    places = {place for group in owners().values() for place in group}
    missing = sorted(name for name in {*light(), *places} if name not in modules())
    assert not missing, f"docs/architecture.md, Import law: names modules that do not exist: {', '.join(missing)}."


# ------------------------------------------------------------------------------------------------------------ the law


def _none(broken: list[str]) -> None:
    assert not broken, "\n" + "\n".join(broken)


def _within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_library_does_not_know_the_service() -> None:
    _none(
        [
            f"{edge.place}: {edge.source} imports {edge.target}. law: sweeps imports seqrec, never back."
            for edge in imports()
            if edge.library == "sweeps" and not _within(edge.source, "sweeps")
        ]
    )


def test_models_losses_and_kernels_meet_in_the_trainer() -> None:
    strangers = [("seqrec.models", "seqrec.losses"), ("seqrec.losses", "seqrec.models")]
    broken = [
        f"{edge.place}: {edge.source} imports {edge.target}. law: models and losses never import each other."
        for edge in imports()
        if any(_within(edge.source, one) and _within(edge.target, other) for one, other in strangers)
    ]
    broken += [
        f"{edge.place}: {edge.source} imports {edge.target}. law: seqrec.kernels imports nothing else of the project."
        for edge in imports()
        if _within(edge.source, "seqrec.kernels")
        and edge.library in PACKAGES
        and not _within(edge.target, "seqrec.kernels")
    ]
    _none(broken)


def test_every_library_has_its_owner() -> None:
    _none(
        [
            f"{edge.place}: {edge.source} imports {edge.library}. law: {edge.library} only in "
            f"{', '.join(owners()[edge.library])}."
            for edge in imports()
            if edge.library in owners() and not _within(edge.source, *owners()[edge.library])
        ]
    )


@pytest.mark.parametrize("name", light())
def test_light_modules_stay_light(name: str) -> None:
    rule = f"law: no torch and no ray in {name}, not even indirectly"
    chain = path_to(name, HEAVY)
    broken = [f"{modules()[name].relative_to(ROOT)}: {' -> '.join(chain)}. {rule}."] if chain else []
    for edge in imports():
        if edge.source != name or not edge.lazy or (edge.source, edge.target) in LAZY:
            continue
        behind = [edge.library] if edge.library in HEAVY else path_to(edge.target, HEAVY)
        if behind:
            broken.append(f"{edge.place}: {' -> '.join([name, *behind])}, inside a function. {rule}.")
    _none(broken)


def test_a_plan_loads_nothing_heavy() -> None:
    """The law as Python sees it, third-party libraries' own imports included."""
    assert _loaded_by("sweeps.run", "torch", "ray", "mlflow") == []
    assert _loaded_by(",".join(light()), "torch", "ray") == []


def _loaded_by(names: str, *libraries: str) -> list[str]:
    code = f"import sys, {names}; print(*[name for name in {libraries!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_chain_finder_finds_chains() -> None:
    """The scheduler and the trainer are heavy; were they found light, every test above would be blind."""
    assert path_to("sweeps.scheduler", ("ray",)) is not None
    assert path_to("seqrec.train", ("torch",)) is not None
    found = list(
        imports_of("seqrec.x", "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from seqrec import config\n")
    )
    assert [(edge.target, edge.lazy) for edge in found] == [("a", False), ("b", True), ("seqrec.config", True)]


# ---------------------------------------------------------------------------------------------------------- the house


@cache
def sources() -> tuple[Path, ...]:
    folders = (*PACKAGES, "tests", "benchmarks")
    return tuple(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


def test_files_can_be_seen_whole() -> None:
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    _none(
        [
            f"{path.relative_to(ROOT)}: {count} lines; expected at most {MOST_LINES}: two ideas?"
            for path, count in counts.items()
            if count > MOST_LINES
        ]
    )


def test_no_eval_no_exec_no_bare_except() -> None:
    broken = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                broken.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.func.id}(...); expected a parser.")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                broken.append(
                    f"{path.relative_to(ROOT)}:{node.lineno}: a bare except; expected the errors it can mend."
                )
    _none(broken)


def test_no_module_for_what_has_no_name() -> None:
    names = {"utils", "util", "common", "helpers", "misc"}
    _none(
        [
            f"{path.relative_to(ROOT)}: expected a name that says what is inside."
            for path in sources()
            if path.stem in names
        ]
    )


def test_no_path_of_somebodys_machine() -> None:
    folders = (*PACKAGES, "tests", "benchmarks", "docs", "docker", "search_spaces")
    texts = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in _TEXT]
    texts += [
        path for path in sorted(ROOT.iterdir()) if path.is_file() and (path.suffix in _TEXT or path.name == "Makefile")
    ]
    broken = []
    for path in texts:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if PATHS_OF_A_MACHINE.search(line):
                broken.append(f"{path.relative_to(ROOT)}:{number}: a path of one machine: {line.strip()[:100]}")
    _none(broken)


_TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".jsonl", ".csv", ".txt", ".sh"}
