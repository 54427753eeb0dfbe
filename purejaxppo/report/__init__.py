"""The report: run directories → one page that compares them."""

from purejaxppo.report.page import write_report

__all__ = ["write_report"]
