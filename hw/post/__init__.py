"""The post unit: requantisation of accumulators, lane-wise maximum, and the words written to the activation memory."""

from tritloom.hw.post.maximum import LaneMaximum, maximum_formula
from tritloom.hw.post.requantise import RecordLayout, Requantiser, requantise_formula
from tritloom.hw.post.unit import PostUnit, ResultCommand, lane_bits

__all__ = ["LaneMaximum", "PostUnit", "RecordLayout", "Requantiser", "ResultCommand", "lane_bits", "maximum_formula", "requantise_formula"]
