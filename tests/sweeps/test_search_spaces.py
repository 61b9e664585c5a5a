"""The search spaces themselves: published counts, published buckets, and every parameter arrives."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from seqrec import data
from seqrec.config import Data, Run
from seqrec.data.tables import Statistics
from sweeps import space, spec
from sweeps.errors import SpecError
from sweeps.spec import SweepSpec

FOLDER = Path(__file__).parents[2] / "search_spaces"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))

PUBLISHED = {
    # RECE, arXiv 2408.02354: 3,861 a data set
    "ce.yaml": 33,
    "bce.yaml": 231,
    "gbce.yaml": 462,
    "ce_minus.yaml": 231,
    "rece.yaml": 2904,
    # SCE, arXiv 2409.18721: 1,870 a data set
    "sce_paper/ce.yaml": 55,
    "sce_paper/bce.yaml": 385,
    "sce_paper/ce_minus.yaml": 385,
    "sce_paper/gbce.yaml": 770,
    "sce.yaml": 275,
    # CCE-, arXiv 2509.09682: 336 a data set and loss
    "batch_length_negatives/ce_minus.yaml": 336,
    "batch_length_negatives/cce_minus.yaml": 336,
}
OWN = {
    "sce_paper/ablation.yaml": 150,
    "bce_plus.yaml": 72,
    "cce.yaml": 42,
    "bert4rec.yaml": 48,
    "presets/beer_advocate.yaml": 7,
    "presets/behance.yaml": 7,
    "presets/kindle.yaml": 7,
    "presets/gowalla.yaml": 8,
    "presets/yelp.yaml": 5,
    "presets/beauty.yaml": 2,
    "presets/beauty_ce.yaml": 3,
}

RECE_BUCKETS = [
    # interactions_per_user, catalog, batch_size, n_extra_chunks -> n_buckets
    (185, 10**6, 8, 1, 133),
    (67, 10**6, 32, 1, 160),
    (53, 10**6, 256, 1, 403),
    (95, 10**6, 128, 3, 583),
    (95, 10**6, 128, 0, 220),
    (10, 12101, 4096, 8, 907),
]
SCE_BUCKETS = [
    # interactions_per_user, batch_size -> n_buckets = bucket_size_x
    (185, 512, 615),
    (185, 32, 153),
    (67, 256, 261),
    (67, 8, 46),
    (53, 2048, 658),
    (53, 64, 116),
    (95, 2048, 882),
    (95, 32, 110),
    (54, 1024, 470),
    (10, 1024, 202),
]


COMPARED = {"all_losses.yaml": 78}
"""Our own comparison of losses, stopped early."""


def statistics(per_user: int = 100, n_items: int = 10**6) -> Statistics:
    """A data set in which everything can exist."""
    return Statistics(
        name="large",
        digest="0" * 64,
        n_users=100_000,
        n_interactions=100_000 * per_user,
        n_items=n_items,
        n_train_users=100_000,
        train_lengths=((200, 100_000),),
    )


@cache
def load(name: str, *overrides: str) -> SweepSpec:
    return spec.load(FOLDER / name, overrides)


@cache
def beauty() -> Statistics:
    return data.statistics(Data(path="amazon_beauty_5core"))


def test_every_file_is_counted_here() -> None:
    assert {*PUBLISHED, *OWN, *COMPARED, "quickstart.yaml"} == set(FILES)
    assert sum(n for name, n in PUBLISHED.items() if name in ("ce.yaml", "bce.yaml", "gbce.yaml")) + 231 + 2904 == 3861
    assert sum(n for name, n in PUBLISHED.items() if name.startswith("sce")) == 1870


@pytest.mark.parametrize(("name", "count"), [*PUBLISHED.items(), *OWN.items(), *COMPARED.items()])
def test_number_of_cells_on_the_bundled_data(name: str, count: int) -> None:
    plan = space.plan(load(name), beauty())
    assert len(plan.cells) == count
    assert (plan.duplicates, plan.dropped, plan.infeasible) == (0, (), ())
    assert f"{count:,} cells" in (FOLDER / name).read_text().partition("\nname:")[0].replace("\n#  ", "")


def test_names_are_folders_of_their_own() -> None:
    names = [load(name).name for name in FILES]
    assert len(set(names)) == len(names)
    for name, file in zip(names, FILES, strict=True):
        assert name.replace("preset_", "presets_") == file.removesuffix(".yaml").replace("/", "_")


@pytest.mark.parametrize("name", [*PUBLISHED, *OWN])
def test_documented_grids_run_without_limits_and_stop_along_the_front_alone(name: str) -> None:
    """Single best configurations and an ablation, of which every cell is an answer, train to their ends."""
    read = load(name)
    whole = name.startswith("presets/") or name == "sce_paper/ablation.yaml"
    assert read.scheduler.name == ("fifo" if whole else "pareto_asha")
    assert whole or read.scheduler.grace_epochs == (
        3 if max(cell.run.train.epochs for cell in space.plan(read, beauty()).cells) >= 40 else 1
    )
    assert whole or "scheduler.name=fifo" in read.text
    assert read.budget == spec.Budget()
    assert read.data == Data(path="amazon_beauty_5core", split="leave_one_out")


@pytest.mark.parametrize("name", [name for name in FILES if name != "quickstart.yaml"])
def test_headers_say_paper_and_cost(name: str) -> None:
    header = (FOLDER / name).read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "arXiv" in header or name == "presets/beauty_ce.yaml"
    assert "Measured GPU-hours:" in header


def test_the_quickstart_is_small_varied_and_stopped_early() -> None:
    read = load("quickstart.yaml")
    plan = space.plan(read, beauty())
    assert len(plan.cells) >= 12
    assert len({cell.run.loss.name for cell in plan.cells}) >= 4
    assert read.scheduler.name == "pareto_asha"
    assert not plan.infeasible
    assert f"{len(plan.cells)} short trainings" in read.text


@pytest.mark.parametrize(("per_user", "catalog", "batch_size", "extra", "n_buckets"), RECE_BUCKETS)
@pytest.mark.parametrize("name", ["rece.yaml", "quickstart.yaml"])
def test_published_buckets_of_rece(
    name: str, per_user: int, catalog: int, batch_size: int, extra: int, n_buckets: int
) -> None:
    read = load(name, f"train.batch_size={batch_size}", f"loss.n_extra_chunks={extra}", "seeds=[1]")
    plan = space.plan(read, statistics(per_user, catalog))
    found = {cell.run.loss.n_buckets for cell in plan.cells if cell.run.loss.name == "rece"}
    assert found == {n_buckets}


@pytest.mark.parametrize(("per_user", "batch_size", "n_buckets"), SCE_BUCKETS)
@pytest.mark.parametrize("name", ["sce.yaml", "quickstart.yaml"])
def test_published_buckets_of_sce(name: str, per_user: int, batch_size: int, n_buckets: int) -> None:
    read = load(name, f"train.batch_size={batch_size}", "seeds=[1]")
    losses = [cell.run.loss for cell in space.plan(read, statistics(per_user)).cells if cell.run.loss.name == "sce"]
    assert {(loss.n_buckets, loss.bucket_size_x) for loss in losses} == {(n_buckets, n_buckets)}


def test_presets_hold_the_published_buckets() -> None:
    """The literals of the presets are those that the formulas give with the papers' constants."""
    per_user = {"beer_advocate": 185, "behance": 67, "kindle": 53, "gowalla": 95, "yelp": 54, "beauty": 10}
    rece, sce = set(), set()
    for name, constant in per_user.items():
        for cell in space.plan(load(f"presets/{name}.yaml"), beauty()).cells:
            loss, batch_size = cell.run.loss, cell.run.train.batch_size
            if loss.name == "rece":
                catalog = 12101 if name == "beauty" else 10**6
                rece.add((constant, catalog, batch_size, loss.n_extra_chunks, loss.n_buckets))
            if loss.name == "sce":
                assert loss.bucket_size_x == loss.n_buckets
                sce.add((constant, batch_size, loss.n_buckets))
    assert rece == set(RECE_BUCKETS)
    assert sce == set(SCE_BUCKETS)


def test_the_documentations_examples_plan(tmp_path: Path) -> None:
    text = (FOLDER.parent / "docs" / "search_spaces.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    for i, example in enumerate(examples):
        path = tmp_path / f"example-{i}.yaml"
        # The later ones are excerpts.
        data_set = "" if "data:" in example else "data: {path: amazon_beauty_5core}\n"
        loss = "" if "loss: {" in example else "loss: {name: rece}\n"
        path.write_text(data_set + loss + example)
        plan = space.plan(spec.load(path), beauty())
        assert plan.cells
        assert not plan.infeasible


# ------------------------------------------------------------------------------------------------ the parameter arrives


def keys(name: str) -> list[str]:
    """Every key that the file gives a value, an axis or an expression; a loss's or model's name changes everything."""
    blocks = {key for block in load(name).blocks for key in (*block.fixed, *block.grid, *block.derived)}
    return sorted({*blocks, "data.split", "data.path", "train.seed"} - {"loss.name", "model.name"})


def one_point(name: str) -> list[str]:
    """Overrides that leave a single point in every block: each axis at its first value, derived values as numbers."""
    read = load(name)
    overrides = {"seeds": "[1]"}
    for block in read.blocks:
        overrides |= {key: str(values[0]) for key, values in block.grid.items()}
        overrides |= dict.fromkeys(block.derived, "12")
        if "loss.n_buckets" in block.fixed:
            # The published numbers have no divisor in common, which buckets_per_chunk must be.
            overrides["loss.n_buckets"] = "12"
    return [f"{key}={value}" for key, value in overrides.items()]


def runs(name: str, *overrides: str) -> list[Run]:
    plan = space.plan(spec.load(FOLDER / name, [*one_point(name), *overrides]), statistics())
    assert not plan.infeasible
    return [cell.run for cell in plan.cells]


def others(run: Run, key: str) -> list[Any]:
    """Other values for a key, likely ones first."""
    section, _, name = key.partition(".")
    part = getattr(run, section)
    value, annotation = getattr(part, name), type(part).model_fields[name].annotation
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2 or 1, value + 1]
    if isinstance(value, float):
        return [value / 2 or 0.5]
    return [other for other in get_args(annotation) if other != value] or ["another"]


def flat(run: Run) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, part in run.model_dump().items() for name, value in part.items()}


def attempt(name: str, key: str, value: Any) -> list[Run] | None:
    """The runs with this key set to this value; None if a law of the configuration forbids it."""
    override = f"seeds=[{value}]" if key == "train.seed" else f"{key}={str(value).lower()}"
    try:
        return runs(name, override)
    except SpecError:
        return None


@pytest.mark.parametrize("name", FILES)
def test_the_parameter_arrives(name: str) -> None:
    """Every key of every file: set to another value, it changes that field of the runs that have it, and no other."""
    parsed = runs(name)
    before = [flat(run) for run in parsed]
    for key in keys(name):
        first = next(run for run, fields in zip(parsed, before, strict=True) if key in fields)
        value, changed = next(
            ((value, found) for value in others(first, key) if (found := attempt(name, key, value))), (None, None)
        )
        if changed is None:
            assert key in LOCKED, f"{name}: {key} could not be set"
            continue
        assert value != flat(first)[key]
        for old, new in zip(before, map(flat, changed), strict=True):
            assert {field for field in old if old[field] != new[field]} == (
                {key} if key in old and old[key] != value else set()
            )
            assert key not in new or new[key] == value


LOCKED = {"loss.sampling"}
"""CE- per user draws without replacement, and popularity needs three keys changed at once."""
