"""Runs over devices, and what `vmap` must be told."""
