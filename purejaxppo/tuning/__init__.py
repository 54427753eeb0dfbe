"""Searches for settings: trials that differ in numbers are trained as one program."""
