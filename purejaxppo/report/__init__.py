"""The report: run directories → one page that compares them."""
