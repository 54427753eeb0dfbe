"""The commands: flags → calls, errors in one line."""
