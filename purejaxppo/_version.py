"""The version, imported by what writes it down."""

__version__ = "0.2.0"
