"""What can go wrong in the service; user mistakes are `seqrec.errors.UserError` with exit code 2.

SeqrecError
+- UserError
|  +- SpecError       a search space that breaks the schema, or an expression that fails for some cell
|  +- LedgerBusy      another driver holds this sweep's directory
+- LedgerError        a ledger that is torn in the middle, or that cannot be written
"""

from __future__ import annotations

from seqrec.errors import SeqrecError, UserError


class SpecError(UserError):
    """A search space that breaks the schema; the message names file, key, value and law."""


class LedgerBusy(UserError):
    """Another driver holds this sweep's directory."""


class LedgerError(SeqrecError):
    """A ledger that is torn in the middle, or that cannot be written."""
