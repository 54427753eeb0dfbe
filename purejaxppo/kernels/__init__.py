"""GPU kernels of our own, written with Pallas, for what XLA makes many launches of."""
