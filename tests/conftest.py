"""Every test runs strictly, on two CPU devices; `thorough` and `slow` ones only where `-m` speaks of them."""

import atexit
import gc
import os
import shutil
import tempfile

import jax
import pytest
from support import QUICK

from purejaxppo.parallel import runs as devices

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes millions of objects that live on, and to look through them again and again is a fifteenth of all tests.
gc.set_threshold(100_000, 50, 100)

# What one test compiled, later ones and the processes that they begin need not. Not shared by pytest's own workers: one
# could read what another has half written.
cache = tempfile.mkdtemp(prefix="tests-cache-")
atexit.register(shutil.rmtree, cache, ignore_errors=True)
for name, value in (
    ("compilation_cache_dir", cache),
    ("persistent_cache_min_compile_time_secs", 0.5),
    ("traceback_in_locations_limit", 0),  # where each operation comes from is a tenth of what compiling takes
):
    jax.config.update(f"jax_{name}", value)
    os.environ[f"JAX_{name.upper()}"] = str(value)

# Runs within this process last for milliseconds; those in processes of their own are compiled as users' are.
devices.QUICK_COMPILATION |= QUICK
with pytest.MonkeyPatch.context() as patch:  # all else that is compiled here, too
    flags = [os.environ.get("XLA_FLAGS", ""), *(f"--{name}={str(value).lower()}" for name, value in QUICK.items())]
    patch.setenv("XLA_FLAGS", " ".join(flags))
    jax.devices()  # reads them, once


# Begun first, so that no process is left with one of them at the end.
LONGEST = ("test_survival", "test_config", "test_hosts", "test_tuning", "test_run", "test_host", "test_sweep")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `slow` or `thorough`, unless `-m` says what to run; the longest files begin first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        if item.get_closest_marker("slow"):  # a slow variant of a thorough test
            item.own_markers = [mark for mark in item.own_markers if mark.name != "thorough"]
    if config.getoption("markexpr"):
        return
    left_out = {item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("thorough")}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
