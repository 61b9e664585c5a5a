"""Data in an S3 store, of a real server: read by the driver, with the digest of the local file, or refused clearly."""

from __future__ import annotations

from typing import Any

import pytest

from seqrec import data
from seqrec.config import Data
from seqrec.data import interactions
from seqrec.errors import UserError

pytestmark = pytest.mark.slow
BUNDLED = "amazon_beauty_5core"


def test_the_digest_is_that_of_the_local_file(s3: Any) -> None:
    s3.pipe_file("sweeps/data/amazon_beauty_5core.parquet", (interactions.BUNDLED / f"{BUNDLED}.parquet").read_bytes())
    assert data.statistics(Data(path="s3://sweeps/data/amazon_beauty_5core.parquet")) == data.statistics(
        Data(path=BUNDLED)
    )


@pytest.mark.parametrize("address", ["s3://sweeps/data/nothing.parquet", "s3://no-such-bucket/nothing.parquet"])
def test_no_such_object(address: str, s3: Any) -> None:
    with pytest.raises(UserError, match=f"^data.path: got '{address}'; expected an object or a bucket that exists"):
        data.statistics(Data(path=address))


def test_no_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3.clear_instance_cache()
    with pytest.raises(
        UserError, match=r"expected credentials for it; none were found\. hint: give them by AWS_ACCESS"
    ):
        data.statistics(Data(path="s3://sweeps/data/anonymous.parquet"))


def test_no_server(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3, "retries", 1)
    monkeypatch.setattr(type(s3), "retries", 1)
    s3.clear_instance_cache()
    with pytest.raises(
        UserError, match=r"expected a store that answers \(\w+\)\. hint: its endpoint is AWS_ENDPOINT_URL"
    ):
        data.statistics(Data(path="s3://sweeps/data/unreachable.parquet"))
