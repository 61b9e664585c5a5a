"""`--set key=value`: the command line's last word on a search space.

A key of a run (train.epochs, loss.rounds, grid.train.batch_size) is laid over every block that has it, in the place of
whatever the file says of it there: value, axis or expression. Any other key (scheduler.name, data.split) replaces the
file's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seqrec import yamlfile
from seqrec.config import NAMED, known_keys, suggest
from seqrec.errors import message
from sweeps import blocks
from sweeps.blocks import BLOCK_KEYS, DEFAULT_MODEL, SECTIONS, Layer
from sweeps.errors import SpecError

SWEEP_KEYS = ("name", "description", "data", "aliases", "blocks", "objectives", "scheduler", "resources", "budget")
"""Keys of the whole sweep; those of `blocks.BLOCK_KEYS` may also stand in a block."""

Change = tuple[str, Any]
"""(key, value) of one `--set`."""


def parse_override(text: str) -> Change:
    """Key and value of a `--set` text; the value is read as YAML."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError(message("--set", text, "key=value", "--set train.batch_size=64"))
    tree = yamlfile.loads(f"value: {value}", f"--set {key}")
    head, _, rest = key.partition(".")
    if head in (*SECTIONS, "data", "grid", "derived") and not rest:
        raise SpecError(f"--set {key}: got the whole section; expected one key of it, such as {head}.<key>=<value>.")
    if head == "blocks":
        raise SpecError(f"--set {key}: cannot be set; expected a key of every block, such as train.epochs=3.")
    if head not in (*SWEEP_KEYS, *BLOCK_KEYS):
        hint = suggest(key, {*known_keys(), *SWEEP_KEYS})
        raise SpecError(f"--set {key}: unknown key." + (f" hint: {hint}" if hint else ""))
    return key, tree["value"]


def change_tree(tree: dict[str, Any], changes: Sequence[Change], data: str | None) -> None:
    """Apply, in place, the overrides of the sweep's own keys, and `--data` as data.path."""
    for key, value in changes:
        head, _, rest = key.partition(".")
        if head not in SWEEP_KEYS and head != "constraints":
            continue
        if rest:
            _put(tree, head, rest, value)
        else:
            tree[head] = value
    if data is not None:
        _put(tree, "data", "path", data)


def change_layers(layers: Sequence[Layer], changes: Sequence[Change]) -> list[Layer]:
    """The layers with every override of a run's key on top; a key of a loss or a model reaches the layers whose loss or
    model has it."""
    changed = list(layers)
    for key, value in changes:
        head, _, rest = key.partition(".")
        if head not in BLOCK_KEYS or head == "constraints":
            continue
        if key == "loss.name" and len(changed) > 1:
            raise SpecError(
                f"--set {key}: got {value!r}; this sweep has {len(changed)} blocks, each with its own loss."
            )
        top = _layer(key, value)
        target = rest if head in ("grid", "derived") else key
        reached = [_has(layer, target) for layer in changed]
        if not any(reached):
            # Nobody's key: every block gets it, so that its check refuses it by name.
            reached = [True] * len(changed)
        changed = [
            blocks.lay_over(layer, top, layer.place) if hit else layer
            for layer, hit in zip(changed, reached, strict=True)
        ]
    return changed


def tell_override(text: str, source: str, changes: Sequence[Change]) -> str:
    """An error's text; one about a key that the command line changed names the command line instead of the file."""
    for key, _ in changes:
        if text.startswith(f"{source}: {key}:"):
            return f"--set {text.removeprefix(f'{source}: ')}"
    return text


def _layer(key: str, value: Any) -> Layer:
    head, _, rest = key.partition(".")
    place = f"--set {key}"
    layer = Layer()
    if head == "seeds":
        layer.seeds = blocks.read_seeds(value, place)
    elif head == "grid":
        blocks.add_axis(layer, rest, value, place)
    elif head == "derived":
        blocks.add_expression(layer, rest, value, place)
    elif isinstance(value, list):
        blocks.add_axis(layer, key, value, place)
    else:
        blocks.fix(layer, key, value, place)
    return layer


def _has(layer: Layer, key: str) -> bool:
    section, _, name = key.partition(".")
    if section not in NAMED or name == "name":
        return True
    owner = layer.fixed.get(f"{section}.name", DEFAULT_MODEL if section == "model" else None)
    kinds = NAMED[section]
    return isinstance(owner, str) and owner in kinds and name in kinds[owner].model_fields


def _put(tree: dict[str, Any], section: str, key: str, value: Any) -> None:
    inner = tree.get(section)
    tree[section] = {**(inner if isinstance(inner, dict) else {}), key: value}
