"""What a step of a loop draws at random, drawn for all steps in advance."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from purejaxppo.kernels.padding import is_known, needed
from purejaxppo.platforms import compiling_for

Step = Callable[[Any, Any], tuple[Any, Any]]


def drawn_in_advance(step: Step, carry: Any, xs: Any) -> tuple[Step, Any]:
    """Another `step` and other `xs` [T, ...] with which a scan gives the same.

    What `step` makes of an x alone, with operations that no kernel has, is made of all xs at once and handed over with
    them.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    with compiling_for("cpu"):
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(carry, one)
    jaxpr, (equations, _) = closed.jaxpr, needed(closed.jaxpr)
    first = len(jax.tree.leaves(carry))
    carried, free = set(jaxpr.invars[:first]), []
    for eqn in equations:
        if carried.intersection(x for x in eqn.invars if not isinstance(x, Literal)):
            carried.update(eqn.outvars)
        else:
            free.append(eqn)
    chance = [eqn for eqn in free if not is_known(eqn)]
    if not chance:
        return step, xs
    drawn = [x for eqn in chance for x in eqn.outvars]
    draw = _function(jaxpr, [*jaxpr.constvars, *jaxpr.invars[first:]], drawn, free)
    rest = [eqn for eqn in equations if eqn not in chance]
    go_on = _function(jaxpr, [*jaxpr.constvars, *jaxpr.invars, *drawn], jaxpr.outvars, rest)

    def without_chance(carry: Any, x: tuple[Any, list[Any]]) -> Any:
        return jax.tree.unflatten(jax.tree.structure(shapes), go_on(*closed.consts, *jax.tree.leaves((carry, x))))

    return without_chance, (xs, jax.vmap(lambda x: draw(*closed.consts, *jax.tree.leaves(x)))(xs))


def _function(jaxpr: Any, inputs: Sequence[Any], outputs: Sequence[Any], equations: Sequence[Any]) -> Any:
    """What some equations of `jaxpr` make of some of its variables."""
    names = jaxpr.debug_info.with_unknown_names()
    part = jaxpr.replace(constvars=[], invars=[*inputs], outvars=[*outputs], eqns=[*equations], debug_info=names)
    return jaxpr_as_fun(ClosedJaxpr(part, []))
