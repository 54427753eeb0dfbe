"""A sweep from Python: from axes of values to one table."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.program import device_bytes
from purejaxppo.keys import as_key
from purejaxppo.parallel.runs import best_vmap_size, over_runs, padded_count
from purejaxppo.presets import with_settings
from purejaxppo.sweeps.axes import Settings, checked, of_python, refuse_overruled, show
from purejaxppo.sweeps.plan import SettingsGroup, batches, fit, group_settings
from purejaxppo.train import make_train
from purejaxppo.types import Metrics

Table = dict[str, np.ndarray]


def sweep(config: Config, axes: Mapping[str, Any], keys: Any) -> Table:
    """Train every combination of the axes' values with every key, on all devices.

    Numbers that may be traced become one program; for each combination of static values there is one. What does not fit
    into memory at once is done in batches.

    Args:
        config: all other settings.
        axes: setting of the config or of its algorithm ↦ values. Of a static one, a list of Python values.
        keys: PRNG keys [S], the same for all settings; a list of them, or the words of `PRNGKey` [S, 2], will do.

    Returns:
        Tidy columns, all of one length, a row per setting, key and update, as `pandas.DataFrame` takes them: the axes,
        `seed` (which key), `update` (from 1), `env_steps`, then the metrics of `make_train`. Evaluations stand in the
        row of the update that they followed, NaN in others. A metric that has an axis's name, as the learning rate that
        an update had, is called `…_of_update`.

    Raises:
        UsageError: an unknown field, an empty axis, a static field as an array, a setting that cannot work, or one
            that does not fit into memory.
    """
    settings = of_python(config, axes)
    configs = checked(config, settings)
    refuse_overruled(configs, settings)
    if isinstance(keys, list | tuple) or getattr(keys, "ndim", 0) == 2:
        keys = jnp.stack([as_key(key) for key in keys]) if len(keys) else jnp.zeros(0)
    if getattr(keys, "ndim", 0) != 1 or not keys.size:
        shape = getattr(keys, "shape", keys)
        raise UsageError(f"keys has shape {shape!r:.80} and must have [S]; pass jax.random.split(key, S).")
    tables: list[Table] = [{}] * len(settings)
    for group in group_settings(config, settings):
        for i, metrics in _train(configs[group.members[0]], group, settings, keys):
            tables[i] = _tidy(configs[i], settings[i], metrics)
    names = dict.fromkeys(name for table in tables for name in table)
    return {
        name: np.concatenate([table.get(name, np.full(len(table["seed"]), np.nan)) for table in tables])
        for name in names
    }


def _train(
    config: Config, group: SettingsGroup, settings: list[Settings], keys: jax.Array
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Train a group, in as few batches as fit: each setting, by its index, and its metrics [S, ...]."""
    devices = jax.devices()[: len(group.members) * len(keys)]
    vmap_size = best_vmap_size(config.on_host, devices)

    def train(own: dict[str, jax.Array], key: jax.Array) -> Metrics:
        return make_train(with_settings(config, own))(key)[1]

    def arguments(members: list[int], size: int) -> tuple[dict[str, jax.Array], jax.Array]:
        """Swept numbers and keys of `size` settings, the last repeated until there are as many as the program takes."""
        runs = np.arange(padded_count(size * len(keys), len(devices), vmap_size))
        which = np.minimum(runs, len(members) * len(keys) - 1)
        own = {name: jnp.asarray([settings[i][name] for i in members])[which // len(keys)] for name in group.swept}
        return own, keys[which % len(keys)]

    def compiled(size: int) -> Any:
        return program.lower(*arguments(group.members[:size], size)).compile()

    program: Any = over_runs(train, devices, vmap_size=vmap_size)
    fitting, size = fit(compiled, device_bytes, len(group.members), devices)
    for members in batches(group.members, size):
        metrics = {name: np.asarray(x) for name, x in fitting(*arguments(members, size)).items()}
        for j, i in enumerate(members):
            yield i, {name: x[j * len(keys) : (j + 1) * len(keys)] for name, x in metrics.items()}


def _tidy(config: Config, own: Settings, metrics: dict[str, np.ndarray]) -> Table:
    """The rows of one setting; metrics are [S, updates], those of evaluations [S, evaluations]."""
    seeds, updates = metrics["alive"].shape
    seed, update = np.indices((seeds, updates))
    update += 1
    columns = {name: np.full((seeds, updates), show(x) if isinstance(x, tuple) else x) for name, x in own.items()}
    columns |= {"seed": seed, "update": update, "env_steps": update * config.steps_per_update}
    for metric, x in metrics.items():
        name = f"{metric}_of_update" if metric in own else metric
        columns[name] = x
        if x.shape[1] != updates:
            columns[name] = np.full((seeds, updates), np.nan)
            columns[name][:, (update[0] % config.eval_interval == 0) | (update[0] == updates)] = x
    return {name: x.ravel() for name, x in columns.items()}
