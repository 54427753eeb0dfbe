"""What the algorithms share: ways of moving parameters."""
