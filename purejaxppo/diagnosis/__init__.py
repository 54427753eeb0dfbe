"""What is probably wrong with a run that does not learn, from what it left and from checks on its environment."""
