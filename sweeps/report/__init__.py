"""Ledger -> the Pareto report: one HTML page that needs no network, the same picture as PNG, CSV, Markdown and JSON.

facts       what the report says, as data
verdict     its first sentence, in words
figure      the picture for the page; picture: the same by matplotlib
page        HTML; plain: Markdown
"""

from sweeps.report.write import Report, write

__all__ = ["Report", "write"]
