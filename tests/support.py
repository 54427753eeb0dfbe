"""What several tests share: quick compilation, and how pytrees are compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.parallel import runs as devices

# For programs that run for milliseconds: compiled in a quarter of the time, to code that is a little slower.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)

# What runs are compiled with outside of the tests.
AS_USERS = devices.QUICK_COMPILATION | {"xla_llvm_disable_expensive_passes": False}

# Fusions as users get them, without LLVM's slowest passes: for bits, many seeds and longer runs.
level_1_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


def by_cost(cases, quick, thorough=None):
    """A test's parameters: `quick` ones run always, `thorough` ones (None: all others) are marked so, the rest slow."""

    def mark(case):
        if case in quick:
            return ()
        return pytest.mark.thorough if thorough is None or case in thorough else pytest.mark.slow

    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark(case)) for case in cases]


def arrays(tree):
    """The leaves as numpy arrays; PRNG keys as the words they are made of."""

    def array(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return [array(x) for x in jax.tree.leaves(tree)]


def assert_same_bits(actual, expected):
    """Equal structure, shapes, types and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(arrays(actual), arrays(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


def largest_difference(a, b):
    """max |a - b| over all leaves; inf where structures or shapes differ, or one is NaN and the other not."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return np.inf
    differences = [0.0]
    for x, y in zip(arrays(a), arrays(b), strict=True):
        if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
            return np.inf
        differences.append(np.nanmax(np.abs(x.astype(np.float64) - y.astype(np.float64)), initial=0.0))
    return max(differences)
