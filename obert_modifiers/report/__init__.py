"""A page and a picture of one run, or of several side by side."""

from obert_modifiers.report.read import Run, read_run
from obert_modifiers.report.write import write_comparison, write_report, write_runs

__all__ = ["Run", "read_run", "write_comparison", "write_report", "write_runs"]
