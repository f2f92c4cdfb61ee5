"""Settings and fixtures of all tests."""

import numpy as np
import pytest
from hypothesis import settings

# The same examples in every run: a failure that continuous integration shows can be repeated on any machine.
settings.register_profile("tritloom", deadline=None, derandomize=True, database=None)
settings.load_profile("tritloom")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same for every test."""
    return np.random.default_rng(20)
