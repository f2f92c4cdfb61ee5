"""Ternary neural networks on cheap FPGAs."""
