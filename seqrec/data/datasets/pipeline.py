"""A data set's raw files -> a canonical file, the original ids, and an account of how they came about."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqrec.data.datasets import parts as work
from seqrec.data.datasets.cells import EARLIEST, LATEST
from seqrec.data.datasets.columnar import BATCH_ROWS
from seqrec.data.datasets.dataset import DataSet, Moment, RawForm
from seqrec.data.datasets.deal import BUCKET_ROWS, Buckets, deal
from seqrec.data.datasets.progress import Progress
from seqrec.data.datasets.protocols import Filters
from seqrec.data.datasets.raw_files import BLOCK_BYTES, find, md5
from seqrec.data.datasets.shape import Shape, digest, shape, write
from seqrec.errors import DataError, message

KINDS = ("users", "items", "interactions")


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote."""

    file: Path
    user_ids: Path
    """Parquet with the columns user_id (encoded) and original; item_ids likewise."""
    item_ids: Path
    account: Path
    """JSON: source, filters, counts, versions."""
    raw: Path
    raw_sha256: str
    filters: Filters
    sizes: dict[Moment, tuple[int, int, int]]
    """users, items, interactions"""
    duplicates: int
    """Rows of the file that repeat another in user, item and time; kept, as published."""
    simultaneous: int
    left_out: dict[str, int]
    """Rows that never were events: reason -> count."""
    digest: str
    reused_parts: int


@dataclass(frozen=True)
class Limits:
    """How much is held in memory at once."""

    block_bytes: int = BLOCK_BYTES
    batch_rows: int = BATCH_ROWS
    bucket_rows: int = BUCKET_ROWS


def prepare(
    data_set: DataSet,
    raw: Path,
    out: Path,
    filters: Filters,
    *,
    protocol: str = "none",
    earliest: date = EARLIEST,
    latest: date = LATEST,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Writes `out`, the original ids and the account beside it; all appear at the end, `out` last.

    Interrupted, it leaves finished parts in a hidden folder beside `out`, and the next call goes on from them. Raises
    DataError that names file and line.
    """
    if earliest >= latest:
        raise DataError(message("--earliest", str(earliest), f"a day before --latest ({latest})"))
    limits, progress = limits or Limits(), progress or Progress()
    path, which = find(raw, [form.pattern for form in data_set.files], data_set.publisher)
    files = _files(out)
    if out.suffix != ".parquet" or path.resolve() in [file.resolve() for file in files.values()]:
        raise DataError(message("--out", str(out), "a file of its own that ends in .parquet"))
    reading = work.Reading(data_set.laws, filters.of_rows, earliest, latest, limits.block_bytes, limits.batch_rows)
    folder = out.with_name(f".{out.name}.work")
    try:
        with work.locked(folder):
            here = work.current(folder, work.key(path, data_set.files[which], reading))
            read = _read(path, data_set.files[which], reading, here, progress)
            with progress.stage("encoding and sorting", 4 * len(read.files)) as advance:
                buckets = deal(read, here, advance, newest_first=data_set.newest_first, bucket_rows=limits.bucket_rows)
            with progress.stage("filtering", 2 * len(buckets.files)) as advance:
                kept = shape(buckets, filters, advance)
            if not kept.events:
                raise DataError(message(f"{path}: filters", str(filters), "filters that leave something"))
            finished = {kind: here / f"finished-{kind}" for kind in files}
            with progress.stage(f"writing {out}", len(buckets.files)) as advance:
                write(buckets, kept, finished["file"], advance)
            _write_ids(buckets.user_ids, kept.users, "user_id", finished["users"])
            _write_ids(buckets.item_ids, kept.items, "item_id", finished["items"])
            done = _prepared(out, path, filters, read, buckets, kept, digest(finished["file"]))
            account = _account(
                data_set, protocol, reading, done, kept, _checksum(path, data_set.files[which], progress)
            )
            finished["account"].write_text(json.dumps(account, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            for kind, file in files.items():
                os.replace(finished[kind], file)
            shutil.rmtree(folder)
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written ({error.strerror or error}).") from None
    return done


def _files(out: Path) -> dict[str, Path]:
    """What is written, `out` last."""
    sides = {kind: out.with_suffix(f".{kind}.parquet") for kind in ("users", "items")}
    return {**sides, "account": out.with_suffix(".json"), "file": out}


def _read(path: Path, form: RawForm, reading: work.Reading, folder: Path, progress: Progress) -> work.Parts:
    with progress.stage(f"reading {path}", path.stat().st_size) as advance:
        read = work.read(path, form, reading, folder, advance)
    if read.reused:
        progress.say(f"{read.reused} of {len(read.files)} parts were there already")
    if not read.ends_in_a_line:
        progress.say(f"{path}: the last line has no line end; if it was cut off there, its event is wrong")
    if not sum(pq.read_metadata(part).num_rows for part in read.files):
        raise DataError(message(f"{path}: rows", 0, "at least one interaction"))
    return read


def _checksum(path: Path, form: RawForm, progress: Progress) -> dict[str, str]:
    """The raw file's MD5 beside its publisher's, where there is one."""
    if form.md5 is None:
        return {}
    found = md5(path)
    if found != form.md5:
        progress.say(f"{path}: got MD5 {found}; its publisher states {form.md5}: another edition, or packed anew?")
    return {"md5": found, "published_md5": form.md5}


def _prepared(
    out: Path, raw: Path, filters: Filters, read: work.Parts, buckets: Buckets, kept: Shape, digest: str
) -> Prepared:
    sizes: dict[Moment, tuple[int, int, int]] = {"read": buckets.read}
    if filters.by_value:
        sizes["chosen"] = buckets.chosen
    sizes["after filter"] = kept.sizes
    files = _files(out)
    return Prepared(
        file=out,
        user_ids=files["users"],
        item_ids=files["items"],
        account=files["account"],
        raw=raw,
        raw_sha256=read.sha256,
        filters=filters,
        sizes=sizes,
        duplicates=kept.duplicates_after,
        simultaneous=kept.simultaneous,
        left_out={"without a user": read.nameless, "empty records": read.empty},
        digest=digest,
        reused_parts=read.reused,
    )


def _write_ids(ids: pa.Array, kept: np.ndarray[Any, np.dtype[np.bool_]], name: str, file: Path) -> None:
    originals = ids.filter(pa.array(kept))
    pq.write_table(
        pa.table({name: np.arange(len(originals), dtype=np.int32), "original": originals}), file, compression="zstd"
    )


def _account(
    data_set: DataSet, protocol: str, reading: work.Reading, done: Prepared, kept: Shape, checksum: dict[str, str]
) -> dict[str, object]:
    stat = done.raw.stat()
    published = [
        {
            "moment": moment,
            **dict(zip(KINDS, (stated.users, stated.items, stated.interactions), strict=True)),
            "source": stated.source,
        }
        for moment in done.sizes
        if (stated := data_set.stated(done.filters, done.raw.name, moment))
    ]
    return {
        "name": done.file.stem,
        "file": done.file.name,
        "data_set": data_set.name,
        "title": data_set.title,
        "digest": done.digest,
        "columns": {
            "user_id": "int32, dense, from 0; originals in " + done.user_ids.name,
            "item_id": "int32, dense, from 0; originals in " + done.item_ids.name,
            "timestamp": f"int64, {data_set.laws.unit} since 1970-01-01 UTC",
        },
        "statistics": dict(zip(KINDS, done.sizes["after filter"], strict=True)),
        "preparation": {
            "protocol": protocol,
            "filters": asdict(done.filters),
            "sizes": {moment: dict(zip(KINDS, sizes, strict=True)) for moment, sizes in done.sizes.items()},
            "published": published,
            "left_out": done.left_out,
            "duplicates": {"before filter": kept.duplicates_before, "after filter": kept.duplicates_after},
            "simultaneous": done.simultaneous,
            "times_accepted": [str(reading.earliest), str(reading.latest)],
            "prepared_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "adapters": work.ADAPTERS_VERSION,
                "seqrec-sweeps": _version("seqrec-sweeps"),
                "python": platform.python_version(),
                "pyarrow": pa.__version__,
                "numpy": np.__version__,
            },
        },
        "provenance": {
            "raw": [
                {
                    "file": done.raw.name,
                    "bytes": stat.st_size,
                    "modified": datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds"),
                    "sha256": done.raw_sha256,
                    **checksum,
                }
            ],
            "publisher": data_set.publisher,
        },
        "licence": data_set.terms,
        "citations": [data_set.citation],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
