"""The HTML report: one file that opens offline."""

from tritloom.report.page import Accuracy, BuildFacts, Sample, render

__all__ = ["Accuracy", "BuildFacts", "Sample", "render"]
