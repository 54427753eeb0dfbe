"""What another run has learnt, for a new run to begin with."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.normalize import RunningStatistics
from purejaxppo.presets import settings_of
from purejaxppo.rundir.checkpoint import newest_in_all
from purejaxppo.rundir.files import to_json
from purejaxppo.rundir.record import usual_settings
from purejaxppo.rundir.snapshot import leaves_by_path
from purejaxppo.train import init
from purejaxppo.types import Learnt, TrainState

# Settings that change what a network computes from the same parameters.
_SAME = (
    *("normalize_observations", "observation_clip", "activation", "convolutions", "action_distribution"),
    *("policy_obs", "critic_obs", "layer_norm", "recurrent"),
)
_SAVED_AS = {"reward_statistics": "reward_normalizer.statistics"}  # where a checkpoint has a field of `Learnt`


def learnt_shapes(config: Config) -> Learnt:
    """The shapes of what a run of this config could begin with."""
    state: TrainState = jax.eval_shape(partial(init, config), jax.random.key(0))
    return Learnt(state.policy, state.critic, state.observation_statistics, state.reward_normalizer.statistics)


def _check_same(directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises: UsageError: with our settings, networks of theirs compute something else, or one of ours is idle."""
    for name in _SAME:
        if theirs.get(name) != ours[name]:
            raise UsageError(
                f"init_from = {str(directory)!r}: its policy was trained with {name} = {theirs.get(name)!r:.80}, and "
                f"here it is {ours[name]!r:.80}; set it as there."
            )
    if (log_std := ours["log_std_init"]) not in (0.0, theirs.get("log_std_init")):
        raise UsageError(f"log_std_init = {log_std} would do nothing: log σ is that of init_from; leave it out.")


def read_learnt(directory: Path, config: Config, others: Sequence[Config] = ()) -> Learnt:
    """Networks and statistics [seeds, ...] of the newest whole checkpoint of a run.

    Reward statistics are taken over where both runs divide rewards by them; else they begin anew. `others` are configs
    of the same program that begin with it, too.

    Raises:
        UsageError: there is none, or it does not fit: the message names the first array, or the setting.
    """

    def warn(text: str) -> None:
        warnings.warn(text, stacklevel=6)

    if (snapshot := newest_in_all(directory / "checkpoints", lambda _: None, warn)) is None:
        raise UsageError(f"init_from = {str(directory)!r} has no checkpoint; name the directory of a run.")
    theirs, ours = snapshot.about["settings"], to_json(settings_of(config))
    theirs = usual_settings(theirs.get("algo"), theirs)
    for settings in (ours, *(to_json(settings_of(other)) for other in others)):
        _check_same(directory, theirs, settings)
    shapes, count, arrays = learnt_shapes(config), len(snapshot.about["seeds"]), {}
    leaves = leaves_by_path(shapes)
    networks = {name.partition(".")[0] for name in leaves} & {"policy", "critic"}  # not each method has a critic
    saved = (path.removeprefix("state.") for path in snapshot.arrays)
    idle = (path for path in saved if path.partition(".")[0] in networks and path not in leaves)  # layers, say
    for name in (*sorted(leaves), *sorted(idle)):
        field, _, rest = name.partition(".")
        path = f"{_SAVED_AS.get(field, field)}.{rest}"
        found, wanted = snapshot.arrays.get(f"state.{path}"), leaves.get(name)
        there = "missing" if found is None else f"{found.dtype}{list(found.shape[1:])}"
        here = "missing" if wanted is None else f"{wanted.dtype}{list(wanted.shape)}"
        if there != here:
            elsewhere = "" if theirs.get("env") == ours["env"] else f"; there env = {theirs.get('env')!s:.80}"
            raise UsageError(
                f"init_from = {str(directory)!r}: {path} is {there} there and {here} here; observations, actions and "
                f"networks must be the same{elsewhere}."
            )
        arrays[name] = found
    learnt: Learnt = jax.tree.unflatten(jax.tree.structure(shapes), [arrays[name] for name in leaves])
    if theirs.get("normalize_rewards") and config.normalize_rewards:
        return learnt
    fresh = jax.tree.map(lambda x: np.repeat(x[None], count, axis=0), RunningStatistics.init(()))
    return learnt._replace(reward_statistics=fresh)
