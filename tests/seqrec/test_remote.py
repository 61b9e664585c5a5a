"""Addresses with a scheme: the same data as the local file, one clear error each, and no secret in any of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from seqrec import data, remote
from seqrec.config import Data
from seqrec.data import interactions
from seqrec.errors import UserError

SECRET = "c4n4ry"


@pytest.fixture
def beauty() -> bytes:
    return (interactions.BUNDLED / "amazon_beauty_5core.parquet").read_bytes()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_the_digest_is_that_of_the_local_file(beauty: bytes, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    local = data.statistics(Data(path="amazon_beauty_5core"))
    memory.pipe_file("/bucket/amazon_beauty_5core.parquet", beauty)
    (tmp_path / "amazon_beauty_5core.parquet").write_bytes(beauty)
    for address in ("memory://bucket/amazon_beauty_5core.parquet", f"file://{tmp_path}/amazon_beauty_5core.parquet"):
        assert data.statistics(Data(path=address)) == local


def test_what_was_planned_is_what_is_trained_on(beauty: bytes, memory: fsspec.AbstractFileSystem) -> None:
    """The object is replaced between the plan and the start of the launch."""
    memory.pipe_file("/bucket/changing.parquet", beauty)
    planned = data.statistics(Data(path="memory://bucket/changing.parquet"))
    memory.pipe_file("/bucket/changing.parquet", b"something else")
    assert data.load(Data(path="memory://bucket/changing.parquet")).statistics == planned


@pytest.mark.parametrize(
    ("address", "law"),
    [
        ("memory://bucket/nothing.parquet", "expected an object or a bucket that exists"),
        ("file:///nowhere/nothing.parquet", "expected an object or a bucket that exists"),
        ("gopher://bucket/file.parquet", "expected a path, or an address that fsspec knows, such as s3://"),
    ],
)
def test_one_error_says_what_is_wrong(address: str, law: str) -> None:
    with pytest.raises(UserError) as caught:
        data.statistics(Data(path=address))
    assert str(caught.value).startswith(f"data.path: got {address!r}; {law}")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"install {name}fs")

    monkeypatch.setattr(sys.modules["fsspec.registry"], "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"hint: pip install 'seqrec-sweeps\[s3\]'$"):
        remote.fetch("s3://bucket/file.parquet", "data.path")


def test_an_object_that_is_no_data_set_is_named(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/bucket/torn.parquet", b"PAR1 and no more")
    with pytest.raises(UserError, match=r"^memory://bucket/torn\.parquet: is not a parquet file that can be read"):
        interactions.read("memory://bucket/torn.parquet")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (f"s3://AKIA:{SECRET}@bucket/a/b.parquet", "s3://***@bucket/a/b.parquet"),
        (f"https://{SECRET}@host:8080/b.parquet", "https://***@host:8080/b.parquet"),
        (f"https://host/b.parquet?X-Amz-Signature={SECRET}&v=1#{SECRET}", "https://host/b.parquet?***#***"),
        (f"https://a:b@{SECRET}@host/b.parquet", "https://***@host/b.parquet"),
        (f"https://[{SECRET}/b", "https://***"),
        ("s3://bucket/a/b.parquet", "s3://bucket/a/b.parquet"),
        ("file:///a/b.parquet", "file:///a/b.parquet"),
    ],
)
def test_what_is_written_down_has_no_secret(address: str, told: str) -> None:
    assert remote.conceal(address) == told
    assert Data(path=address).path == told
    assert SECRET not in remote.scrubbed(f"GET {address} failed: {address}")
    assert bool(remote.secrets_in(f"path: '{address}' # note")) == (SECRET in address)


def test_addresses_without_secrets_stay_whole_in_texts() -> None:
    text = "see https://openreview.net/forum?id=xyz and s3://bucket/file?versionId=3"
    assert remote.scrubbed(text) == text
    assert remote.secrets_in(text) == []


def test_the_concealed_address_still_reads(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def store(address: str, **options: object) -> tuple[fsspec.AbstractFileSystem, str]:
        asked.append(address)
        return memory, "/bucket/signed.bin"

    memory.pipe_file("/bucket/signed.bin", b"content")
    monkeypatch.setattr("fsspec.core.url_to_fs", store)
    whole = f"https://host/signed.bin?X-Amz-Signature={SECRET}"
    assert remote.fetch(Data(path=whole).path, "data.path") == b"content"
    assert asked == [whole]


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ("error", "law"),
    [
        (
            PermissionError(f"Access Denied for {SECRET}"),
            "credentials that may use it; these are refused. hint: give them",
        ),
        (NoCredentialsError(SECRET), "credentials for it; none were found. hint: give them by AWS_ACCESS_KEY_ID"),
        (OSError(f"https://host/?sig={SECRET}"), "a store that answers (OSError)"),
    ],
)
def test_a_store_that_refuses(error: Exception, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def cat_file(self, path: str) -> bytes:
            raise error

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address, **options: (Refusing(), "path"))
    with pytest.raises(UserError) as caught:
        remote.fetch(f"https://u:{SECRET}@host/{type(error).__name__}.parquet", "data.path")
    assert law in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
