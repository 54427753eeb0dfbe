"""Environments: one file per suite, each adapting its suite to the `Env` protocol."""
