"""Raw files: found in a folder, opened whatever they are packed in, hashed while they are read, cut into blocks."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from seqrec.data.datasets.rows import Block
from seqrec.errors import DataError, message

BLOCK_BYTES = 32 << 20
"""Unpacked text of one part."""
LONGEST_RECORD_BYTES = 256 << 20
SHOWN_NAMES = 12
_READ_BYTES = 4 << 20
_START_BYTES = 64
"""Enough to know a byte order mark, a web page or a packed file."""
_PAGES = (b"<!doctype", b"<html", b"<?xml")


def find(raw: Path, patterns: list[str], publisher: str) -> tuple[Path, int]:
    """The one raw file under `raw` (a folder, or the file itself), and the pattern that it fits.

    Raises DataError that lists what was looked for and what is there.
    """
    law = f"a folder that holds one of {', '.join(patterns)}, or such a file"
    hint = f"from {publisher}"
    if raw.is_file():
        for number, pattern in enumerate(patterns):
            if raw.match(pattern):
                return raw, number
        raise DataError(message("--raw", str(raw), law, hint))
    if not raw.is_dir():
        raise DataError(message("--raw", str(raw), law, "there is no such folder"))
    found = {path: number for number, pattern in enumerate(patterns) for path in sorted(raw.glob(pattern))}
    if not found:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in raw.iterdir())
        shown = ", ".join(names[:SHOWN_NAMES]) or "nothing"
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        raise DataError(f"--raw: got {str(raw)!r}, which holds {shown}{more}; expected {law}. hint: {hint}")
    if len(found) > 1:
        names = [str(path.relative_to(raw)) for path in found]
        raise DataError(message("--raw", str(raw), f"one raw file, not {len(names)} ({', '.join(names)})", "name one"))
    return next(iter(found.items()))


def sha256(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """64 hex digits; advance: told the bytes read so far."""
    digest, position = hashlib.sha256(), 0
    with _told(path), path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            position += len(piece)
            advance(position)
    return digest.hexdigest()


def md5(path: Path) -> str:
    """32 hex digits: for publishers who state no better one."""
    with _told(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _Hashed(io.RawIOBase):
    """A file read once from front to back, hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        self.digest.update(piece)
        self.position += len(piece)
        return len(piece)


@dataclass
class Text:
    """The unpacked text of a raw file. `sha256`, of the packed file, is known once `blocks` is exhausted; so is
    `ends_in_a_line`."""

    path: Path
    source: str
    """The file, for messages: path, and member of an archive."""
    position: Callable[[], int]
    """Packed bytes read so far."""
    _stream: IO[bytes]
    _finish: Callable[[], str]
    sha256: str = ""
    ends_in_a_line: bool = True
    """False: the last line has no line end, as when a download was cut off."""

    def blocks(self, separator: bytes, *, has_header: bool, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """Blocks of about `size` bytes that end behind a separator; the last one where the file ends."""
        with _told(self.path):
            yield from self._cut(separator, has_header, size)
            self.sha256 = self._finish()

    def _cut(self, separator: bytes, has_header: bool, size: int) -> Iterator[Block]:
        held, line, header, first = b"", 1, None, True
        while piece := self._stream.read(max(size, _START_BYTES) if first else size):
            if first and (held + piece)[:_START_BYTES].lstrip().lower().startswith(_PAGES):
                raise DataError(message(self.source, piece[:40], "the data set's file, not a web page"))
            held = (held + piece).replace(b"\r\n", b"\n")
            if first:
                held, first = held.removeprefix(b"\xef\xbb\xbf"), False
            if has_header and header is None:
                if b"\n" not in held:
                    continue
                top, _, held = held.partition(b"\n")
                header, line = top.decode("utf-8", "surrogateescape"), 2
            end = held.rfind(separator) + len(separator)
            if end >= len(separator):
                yield Block(self.source, held[:end], line, header)
                line += held.count(b"\n", 0, end)
                held = held[end:]
            elif len(held) > LONGEST_RECORD_BYTES:
                law = f"records of at most {LONGEST_RECORD_BYTES >> 20} MiB"
                raise DataError(message(f"{self.source}: line {line}", held[:40], law))
        if has_header and header is None:
            header, held = held.decode("utf-8", "surrogateescape"), b""
        self.ends_in_a_line = not held or held.endswith(b"\n")
        if held.strip() or (has_header and line <= 2):
            yield Block(self.source, held, line, header)


@contextmanager
def open_text(path: Path, member: str | None = None) -> Iterator[Text]:
    """A raw file as text. gzip is told by its first bytes; member: how a name in a zip archive ends.

    Raises DataError for a file that is cut off, damaged, or something else than its name says.
    """
    with ExitStack() as stack:
        with _told(path):
            file = stack.enter_context(path.open("rb"))
            start = file.read(_START_BYTES)
            file.seek(0)
            if start.lstrip().lower().startswith(_PAGES):
                raise DataError(message(str(path), start[:40], "the data set's file, not a web page"))
            text = _archived(path, member, file, stack) if path.suffix == ".zip" else _plain(path, start, file)
        yield text  # outside: what goes wrong with the text is not this file's fault


def _archived(path: Path, member: str | None, file: IO[bytes], stack: ExitStack) -> Text:
    archive = stack.enter_context(zipfile.ZipFile(file))
    names = [name for name in archive.namelist() if f"/{name}".endswith(f"/{member}")]
    if len(names) != 1:
        raise DataError(message(f"{path}: members", len(names), f"one {member}"))
    digest = sha256(path)
    return Text(path, f"{path}: {names[0]}", file.tell, stack.enter_context(archive.open(names[0])), lambda: digest)


def _plain(path: Path, start: bytes, file: IO[bytes]) -> Text:
    packed = start.startswith(b"\x1f\x8b")
    if path.suffix == ".gz" and not packed:
        law = "a gzip file (1f 8b ...)"
        raise DataError(message(str(path), start[:16], law, "if it is unpacked already, rename it without .gz"))
    hashed = _Hashed(file)
    buffered = io.BufferedReader(hashed, _READ_BYTES)

    def finish() -> str:
        while buffered.read(_READ_BYTES):
            pass
        return hashed.digest.hexdigest()

    stream = cast(IO[bytes], gzip.GzipFile(fileobj=buffered) if packed else buffered)
    return Text(path, str(path), lambda: hashed.position, stream, finish)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the libraries raise about a broken file, in the project's words."""
    try:
        yield
    except EOFError:
        raise DataError(f"{path}: got a file that ends too early; expected it whole. hint: download it again") from None
    except (gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        law = "an undamaged archive"
        raise DataError(f"{path}: got {str(error).rstrip('.')}; expected {law}. hint: download it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
