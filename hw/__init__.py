"""Amaranth gateware of the ternary core. ``hw.arch`` is pure Python; every other package here needs Amaranth."""
