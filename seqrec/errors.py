"""What can go wrong, as a tree.

    SeqrecError
    +- UserError (ValueError)      a mistake in a file, key or argument: exit code 2, before any GPU is touched
    |  +- ConfigError              a configuration that no data set could satisfy
    |  +- InfeasibleError          a configuration that cannot exist on this data set (4,096 negatives from 2,000 items)
    |  +- DataError                a data file that breaks the canonical form
    +- DivergedError               the loss or a parameter became non-finite while training
    +- CheckpointError             a checkpoint that cannot be read or belongs to another configuration

Messages read `<key or argument>: got <value>; expected <law>.`, with an optional `hint: ...` at the end.
"""

from __future__ import annotations


class SeqrecError(Exception):
    """Root of every error this project raises on purpose."""


class UserError(SeqrecError, ValueError):
    """A mistake of the caller; the message names the key, the value and the law."""


class ConfigError(UserError):
    """A configuration that no data set could satisfy."""


class InfeasibleError(UserError):
    """A valid configuration that cannot exist on this data set."""


class DataError(UserError):
    """A data file that breaks the canonical form; the message names file and row."""


class DivergedError(SeqrecError):
    """The loss or a parameter became non-finite while training."""


class CheckpointError(SeqrecError):
    """A checkpoint that cannot be read, or that another configuration wrote."""


LONGEST_VALUE = 160
"""Characters of a value that a message shows."""


def message(subject: str, got: object, expected: str, hint: str | None = None) -> str:
    """One line in the project's form: `subject: got value; expected law. hint: ...`. A long value is cut."""
    line = f"{subject}: got {shortened(got)}; expected {expected}."
    return f"{line} hint: {hint}" if hint else line


def shortened(value: object) -> str:
    """`repr` of a value, its middle left out if it is long."""
    text = repr(value)
    half = LONGEST_VALUE // 2
    return text if len(text) <= LONGEST_VALUE else f"{text[:half]} ... {text[-half:]}"
