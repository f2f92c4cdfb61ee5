"""Data sets, read from installed packages; none of these modules needs PyTorch."""
