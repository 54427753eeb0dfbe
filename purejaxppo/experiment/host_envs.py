"""What a run must know of environments that are stepped by the host: they fail, end with the run, and begin anew."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax

from purejaxppo.envs.base import BaseEnv
from purejaxppo.errors import HostEnvironmentError
from purejaxppo.types import TrainState


@contextlib.contextmanager
def closing(env: BaseEnv, seeds: Sequence[int], way_out: Callable[[], str]) -> Iterator[None]:
    """End an environment's processes with the run; `seeds` are those of its runs, one after the other.

    Raises:
        HostEnvironmentError: an environment failed; it names the seed.
    """
    if not env.on_host:
        yield
        return
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (failed := env.failed) is None:
            raise
        raise HostEnvironmentError(
            f"{failed.name}: environment {failed.index} of seed {seeds[failed.run]} {failed.how}; {way_out()}"
        ) from error
    finally:
        env.close()


def with_episodes_of(fresh: TrainState, state: TrainState) -> TrainState:
    """`state`, but its environments are those of `fresh`, which have just begun."""
    normalizer = state.reward_normalizer.replace(discounted_return=fresh.reward_normalizer.discounted_return)
    return state.replace(rollout=fresh.rollout, reward_normalizer=normalizer)
