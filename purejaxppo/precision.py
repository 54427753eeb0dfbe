"""Training in single precision, whatever `jax_enable_x64` says; and the precision of its matrix products."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PRECISIONS = ("default", "high", "highest")


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


def matmul_precision(precision: str) -> AbstractContextManager[None]:
    """How exactly matrix products of float32 that are traced within are to be made; "default" leaves it to JAX.

    That is TF32 on an NVIDIA GPU (10 bits of mantissa), bfloat16 on a TPU (7 bits), float32 on a CPU. "high" is three
    passes of bfloat16 on a TPU, and elsewhere as the default; "highest" is float32 everywhere.
    """
    return nullcontext() if precision == "default" else jax.default_matmul_precision(precision)


def at_its_precision(fn: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`fn` of a config and more, its matrix products as exact as the config's `precision` says."""

    @functools.wraps(fn)
    def precisely(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        config: Any = kwargs["config"] if "config" in kwargs else args[0]
        with matmul_precision(config.precision):
            return fn(*args, **kwargs)

    return precisely


def _round(x: Any) -> Any:
    return x.astype(jnp.float32) if isinstance(x, jax.Array) and x.dtype == jnp.float64 else x
