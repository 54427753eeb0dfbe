"""What a run has learnt, read back from its directory."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.policy.acting import actor
from purejaxppo.rundir.checkpoint import newest_whole, steps_saved
from purejaxppo.rundir.record import RunRecord, read_record
from purejaxppo.rundir.snapshot import Snapshot
from purejaxppo.rundir.summary import read_summary
from purejaxppo.train import init
from purejaxppo.types import TrainState


class Trained(NamedTuple):
    """One seed of a run."""

    config: Config
    seed: int
    state: TrainState
    env_steps: int  # that it was trained for
    act: Callable[..., Any]  # (obs [..., O], key=None) -> what the environment receives, [..., A]; see `load`

    def __repr__(self) -> str:
        """Without the arrays."""
        what = f"{self.config.algo_name} on {self.config.env_name}"
        return f"Trained({what}, seed {self.seed}, {self.env_steps:,} steps)"


def load(
    directory: str | Path,
    seed: int | str = "best",
    checkpoint: int | str = "last",
    env: Any = None,
    policy_network: Any = None,
    critic_network: Any = None,
    optimizer: Any = None,
) -> Trained:
    """One seed of a run, ready to act.

    `act(obs)` takes the policy's mode, `act(obs, key)` a sample; gSDE's has the same noise for the same key, to be
    passed as long as that is to hold. `obs` is as the environment gives it, one or a batch, in lists or arrays:
    observations are normalised, and actions clipped, as they were in training. For a `gymnasium/…` run both are as
    Gymnasium has them; masks that it tells beside the observation are given as the entry `action_mask` of a dictionary,
    with the observation as `obs`. With frames stacked, `obs` holds the stack. Of a recurrent policy
    `action, hidden = act(obs, key, hidden)`; without `hidden`, it begins an episode.

    Args:
        seed: `best` (by the final evaluation; by the last returns, if the run has not ended) or a seed's number.
        checkpoint: `last`, or the environment steps of one that was kept.
        env: the environment, again, if it is not a registered one: a file is not trusted to run code.
        policy_network: the module, again, if the run was trained with one of the user's own. Its parameters must have
            the shapes of those saved; nothing else of it can be compared.
        critic_network: likewise.
        optimizer: likewise, if it is a function.

    Raises:
        UsageError: there is no such run, seed or checkpoint, or it is damaged and no older one is whole; an `obs` of
            another shape, or without an entry of a dictionary.
    """
    record = read_record(Path(directory), env, policy_network, critic_network, optimizer)
    snapshot, states = load_all(record, checkpoint)
    i = seed_index(record, snapshot, seed)
    return trained(record.config, record.seeds, states, i, snapshot.about["env_steps"])


def as_trained(policy: Trained | str | Path) -> Trained:
    """A policy, or that of a run's directory, see `load`."""
    return load(policy) if isinstance(policy, str | Path) else policy


def trained(config: Config, seeds: list[int], states: TrainState, i: int, env_steps: int) -> Trained:
    """The i-th of the states [seeds] of a run."""
    state = jax.tree.map(lambda x: jax.numpy.asarray(x[i]), states)
    return Trained(config, seeds[i], state, env_steps, actor(config, state))


def load_all(record: RunRecord, checkpoint: int | str = "last") -> tuple[Snapshot, TrainState]:
    """The states of all seeds at a checkpoint, and what it says of itself. Raises as `load`."""
    kept = steps_saved(record.directory / "checkpoints")
    if not kept:
        raise UsageError(f"{record.directory} has no checkpoint yet; wait, or --resume it.")
    saved = kept if checkpoint == "last" else [path for path in kept if path.name == str(checkpoint)]
    if not saved:
        names = ", ".join(path.name for path in kept)
        raise UsageError(f"checkpoint = {checkpoint!r} was not kept; there are last, {names}.")
    keys = jax.vmap(partial(jax.random.key, impl=record.prng))(np.asarray(record.seeds, np.uint32))
    like = jax.eval_shape(jax.vmap(partial(init, record.config)), keys)
    snapshot = newest_whole(
        saved,
        lambda found: found.check(record.config, record.seeds, like),
        lambda text: warnings.warn(text, stacklevel=4),
    )
    return snapshot, snapshot.state(like)


def seed_index(record: RunRecord, snapshot: Snapshot, seed: int | str) -> int:
    """Where in the run a seed stands: `best`, or its number."""
    if seed == "best":
        summary, scores = read_summary(record.directory, record.seeds), snapshot.about["scores"]
        if summary and summary["env_steps"] == record.config.env_steps:  # and was not made longer since
            scores = summary["eval_return"]["per_seed"]
        return best_index(scores)
    if str(seed) not in map(str, record.seeds):
        raise UsageError(f"seed = {seed!r} is not one of this run's: best, {record.seeds[0]} … {record.seeds[-1]}.")
    return [str(x) for x in record.seeds].index(str(seed))


def best_index(scores: ArrayLike) -> int:
    """Where the greatest of scores [seeds] stands; NaN is less than all."""
    known = np.asarray(scores, np.float64)
    return int(np.argmax(np.where(np.isnan(known), -np.inf, known)))
