"""Addresses with a scheme, such as s3://bucket/file.parquet: read through fsspec, written nowhere with their secrets.

An address may hold a secret: user:password@, or a signature behind the question mark. `conceal` gives the form that may
be written down and keeps the whole one in this process alone, where `fetch` and `open_store` find it again.

fsspec's libraries for the schemes are optional (extra `s3` for s3://). Credentials come from their usual places, such
as AWS_ACCESS_KEY_ID or a profile, and another endpoint than Amazon's from AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from seqrec.errors import SeqrecError, UserError, message

HIDDEN = "***"
EXAMPLE = "s3://bucket/folder/file.parquet"
SECRET_KEY = re.compile("sig|token|secret|passw|key|cred|auth", re.IGNORECASE)
"""Names of a query's keys whose values nobody else should know."""
IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "ProfileNotFound")
"""botocore's errors by name: it is an optional dependency."""
CREDENTIALS = "give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role"


class StoreDownError(UserError):
    """A store that does not answer now and may answer later."""


_whole: dict[str, str] = {}
"""Concealed address -> the whole one."""


def is_remote(address: str) -> bool:
    """Whether it has a scheme; a path has none."""
    return "://" in address


def redacted(address: str) -> str:
    """The address with stars in the place of user, password, query and fragment."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return f"{address.partition('://')[0]}://{HIDDEN}"
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{HIDDEN}@{host}" if "@" in parts.netloc else host
    query, fragment = (HIDDEN if part else "" for part in (parts.query, parts.fragment))
    return urlunsplit((parts.scheme, netloc, parts.path, query, fragment))


def has_secret(address: str) -> bool:
    """Whether it names a user, or a key in its query whose name speaks of a secret."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return True
    return "@" in parts.netloc or any(SECRET_KEY.search(name) for name, _ in parse_qsl(parts.query, True))


def scrubbed(text: str) -> str:
    """A text, of somebody's error say, in which no address has a secret."""
    return IN_TEXT.sub(lambda found: redacted(found[0]) if has_secret(found[0]) else found[0], text)


def secrets_in(text: str) -> list[str]:
    """The addresses in a text that have secrets, redacted."""
    return [redacted(found[0]) for found in IN_TEXT.finditer(text) if has_secret(found[0])]


def conceal(address: str) -> str:
    """The form of an address that may be written down. A path stays as it is."""
    if not is_remote(address):
        return address
    told = redacted(address)
    if told != address:
        _whole[told] = address
    return told


def fetch(address: str, subject: str) -> bytes:
    """The content of one object. Raises UserError, which names `subject`, if there is none, if it may not be read, if
    there are no credentials for it or no library of its scheme."""
    return _fetch(whole(address), subject)


@lru_cache(maxsize=1)
def _fetch(address: str, subject: str) -> bytes:
    """Kept, so that what is planned and what is trained on is the same even if the object changes in between."""
    system, path = open_store(address, subject)
    with asking(address, subject):
        return bytes(system.cat_file(path))


@contextmanager
def asking(address: str, subject: str) -> Iterator[None]:
    """Whatever a store raises in the block comes out as one UserError."""
    try:
        yield
    except SeqrecError:
        raise
    except Exception as error:  # every library has its own kinds, and none of them can be imported here
        raise refusal(error, address, subject) from None


def whole(address: str) -> str:
    """What `conceal` was given; for another process that shall open the store."""
    return _whole.get(address, address)


def open_store(address: str, subject: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it) of an address. Raises UserError as `fetch` does; nothing is asked yet."""
    address = whole(address)
    scheme = address.partition("://")[0]
    from fsspec.core import url_to_fs
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError:
        extra = "s3" if scheme in ("s3", "s3a") else ""
        hint = f"pip install 'seqrec-sweeps[{extra}]'" if extra else f"install fsspec's library for {scheme}://"
        raise UserError(message(subject, redacted(address), "a scheme whose library is installed", hint)) from None
    except ValueError:
        law = f"a path, or an address that fsspec knows, such as {EXAMPLE}"
        raise UserError(message(subject, redacted(address), law)) from None
    with asking(address, subject):
        system, path = url_to_fs(address, use_listings_cache=False)
    return system, path


def refusal(error: Exception, address: str, subject: str) -> UserError:
    """A store's error as ours. Of its text nothing is kept, for it may hold the address."""
    told, kind = redacted(whole(address)), type(error).__name__
    if isinstance(error, FileNotFoundError):
        return UserError(message(subject, told, "an object or a bucket that exists"))
    if isinstance(error, PermissionError):
        return UserError(message(subject, told, "credentials that may use it; these are refused", CREDENTIALS))
    if kind in WITHOUT_CREDENTIALS:
        return UserError(message(subject, told, "credentials for it; none were found", CREDENTIALS))
    return StoreDownError(message(subject, told, f"a store that answers ({kind})", "its endpoint is AWS_ENDPOINT_URL"))
