"""Settings of all tests."""

from hypothesis import settings

# The same examples in every run: a failure that continuous integration shows can be repeated on any machine.
settings.register_profile("tritloom", deadline=None, derandomize=True, database=None)
settings.load_profile("tritloom")
