"""A checkpoint as it is read: arrays by their paths in the tree, which are held against the run that they stand in."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.keys import as_data, is_key
from purejaxppo.presets import settings_of
from purejaxppo.rundir.files import refusing, to_json
from purejaxppo.rundir.record import is_object, usual_settings

Arrays = dict[str, np.ndarray]  # by path in the tree: "state.policy.params.Dense_0.kernel"


class Snapshot(NamedTuple):
    """A checkpoint, read and found whole."""

    arrays: Arrays
    keys: dict[str, str]  # which of them are PRNG keys, and of which implementation
    about: dict[str, Any]  # what `save` was told
    directory: Path

    def check(self, config: Config, seeds: list[int], like: Any) -> None:
        """Hold it against the run that it stands in, and `like`, the shapes of that run's states.

        Raises:
            UsageError: it is another run's, of another algorithm, environment, setting or seeds.
        """
        with refusing(self.directory / "manifest.json"):
            self._check_progress(config.steps_per_update, len(seeds))
            fields = (*dataclasses.fields(config), *dataclasses.fields(config.algo))
            usual = {field.name: to_json(field.default) for field in fields}  # for what an older version did not have
            written = to_json(usual_settings(config.algo_name, self.about["settings"]))
            theirs = usual | written | {"seeds": self.about["seeds"]}
        ours = to_json(settings_of(config) | {"seeds": seeds})
        falls = config.anneal_learning_rate or config.anneal
        mine_to_change = set() if falls else {"total_steps"}  # which a resumed run may raise
        if not isinstance(config.env, str) or is_object(str(theirs["env"])):
            mine_to_change |= {"env"}  # given again, and an instance has no name
        # modules of the user's own are given again, too: `like` holds their parameters' shapes
        mine_to_change |= {name for name in ("policy_network", "critic_network") if getattr(config, name) is not None}
        mine_to_change |= set() if isinstance(config.optimizer, str) else {"optimizer"}
        for name in sorted((ours.keys() | theirs.keys()) - mine_to_change):
            if ours.get(name) != theirs.get(name):
                raise UsageError(
                    f"{self.directory} was written with {name} = {theirs.get(name)!r:.80}, and config.json says "
                    f"{ours.get(name)!r:.80}; put back the one that belongs to it."
                )
        self.state(like)

    def state(self, like: Any) -> Any:
        """The saved state as a tree like `like`: a tree of arrays, or its `jax.eval_shape`.

        Raises:
            UsageError: an array is missing, or of another shape or dtype; nothing is cast.
        """
        leaves = [self._leaf(path, wanted) for path, wanted in leaves_by_path({"state": like}).items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _leaf(self, path: str, wanted: Any) -> Any:
        found, data = self.arrays.get(path), jax.eval_shape(as_data, wanted)
        if found is None or (found.shape, found.dtype) != (data.shape, data.dtype):
            what = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise UsageError(
                f"{self.directory}: {path} is {what} and must be {data.dtype}{list(data.shape)}; the checkpoint "
                "is of another network size, environment or algorithm."
            )
        if not is_key(wanted):
            return found
        with refusing(self.directory / "manifest.json"):
            key = jax.random.wrap_key_data(jnp.asarray(found), impl=self.keys[path])
        if key.dtype != wanted.dtype:
            raise UsageError(f"{self.directory}: {path} is a key of {self.keys[path]}, and must not be.")
        return key

    def _check_progress(self, batch: int, num_seeds: int) -> None:
        """Raises: ValueError, TypeError, KeyError: what it says of itself cannot be."""
        update, steps, totals = self.about["update"], self.about["env_steps"], self.arrays["totals"]
        if type(update) is not int or update < 1 or steps != update * batch or self.directory.name != str(steps):
            raise ValueError(f"{update!r:.40} updates of {batch} steps do not make {steps!r:.40}, or not its name")
        if totals.ndim != 2 or len(totals) != num_seeds or totals.dtype != np.float32:
            raise ValueError(f"totals is {totals.dtype}{list(totals.shape)}")
        if np.asarray(self.about["scores"], np.float64).shape != (num_seeds,):
            raise ValueError("scores are not one per seed")
        seconds = self.about["seconds"]
        if not {"compile", "run"} <= seconds.keys() or not all(0 <= x < math.inf for x in seconds.values()):
            raise ValueError("seconds are none")


def flatten(tree: Any) -> Arrays:
    """Every leaf by its path, on the host; PRNG keys as the integers that they are."""
    return {path: np.asarray(as_data(x)) for path, x in leaves_by_path(tree).items()}


def leaves_by_path(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in found}
    if len(leaves) < len(found):  # a key holds the separator
        return {jax.tree_util.keystr(path): x for path, x in found}
    return leaves
