"""Training in single precision, whatever `jax_enable_x64` says."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def single_precision(fn: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`fn`, traced as if `jax_enable_x64` were off, its float64 arguments rounded: the same types and bits either way.

    With it on, JAX's random numbers and zeros would be float64 beside float32 parameters, and some environments fail.
    """

    @functools.wraps(fn)
    def in_single_precision(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not jax.config.read("jax_enable_x64"):
            return fn(*args, **kwargs)
        with jax.enable_x64(False):
            args, kwargs = jax.tree.map(_round, (args, kwargs))
            return fn(*args, **kwargs)

    return in_single_precision


def _round(x: Any) -> Any:
    return x.astype(jnp.float32) if isinstance(x, jax.Array) and x.dtype == jnp.float64 else x
