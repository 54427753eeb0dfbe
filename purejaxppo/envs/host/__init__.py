"""Environments that are stepped by this machine's processes."""
