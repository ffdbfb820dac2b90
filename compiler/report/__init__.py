"""The report: one value, shown three ways (terminal table, JSON, self-contained HTML)."""

from condensec.report.model import *  # noqa: F403 (its `__all__` says which)
