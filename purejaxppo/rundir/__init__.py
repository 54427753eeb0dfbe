"""The run directory: each file format, its writer beside its one reader."""
