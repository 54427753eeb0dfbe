"""The host's side of a run: chunks, files, progress, figures."""
