"""The report: a run or an export as one self-contained HTML page."""

from vggkeras.report.page import report as report
