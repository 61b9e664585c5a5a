"""No secret in anything that is written: search spaces with one are refused, what a launch leaves is looked through."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import run, spec
from sweeps.errors import SpecError

CANARY = "c4n4ry"
SIGNED = f"https://someone:{CANARY}1@host/tiny.parquet?X-Amz-Signature={CANARY}2"


def test_a_search_space_with_a_secret_is_refused(tiny: Path) -> None:
    told = r"got 'https://\*\*\*@host/tiny.parquet\?\*\*\*'; expected an address without user, password or signature"
    with pytest.raises(SpecError, match=f"^--set: {told}") as caught:
        spec.load(tiny, [f"data.path={SIGNED}"])
    assert CANARY not in str(caught.value)
    tiny.write_text(tiny.read_text(encoding="utf-8") + f"# formerly {SIGNED}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=f"tiny.yaml: {told}") as caught:
        spec.load(tiny)
    assert CANARY not in str(caught.value)


def test_the_address_on_the_command_line_is_kept_out_of_the_spec_and_of_what_goes_on(tiny: Path) -> None:
    assert spec.load(tiny, data=SIGNED).data.path == "https://***@host/tiny.parquet?***"
    assert CANARY not in repr(spec.load(tiny, data=SIGNED))
    for words in (["x.yaml", "--data", SIGNED], ["x.yaml", f"--data={SIGNED}"]):
        assert CANARY not in run._command(words)
