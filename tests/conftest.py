"""Every test runs strictly, on two CPU devices; slow ones only where `-m` speaks of them."""

import os
import tempfile

# What one test compiled, others and their processes need not: a directory that all workers of a session share.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="tests-cache-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `slow`, unless `-m` says something about it; the longest test begins first."""
    items.sort(key=lambda item: "test_survival" not in item.nodeid)
    if "slow" in config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
