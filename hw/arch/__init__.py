"""What compiler, golden model, gateware and host agree on: core parameters, instruction encoding, link frames, trit codecs.

Pure Python and NumPy. This package imports nothing else of the project except :mod:`tritloom.errors`.
"""
