"""What people see of a result: a report in one HTML file, and a table for the terminal."""

from umbel.simulations.report.page import write_report
from umbel.simulations.report.terminal import terminal_table

__all__ = ["terminal_table", "write_report"]
