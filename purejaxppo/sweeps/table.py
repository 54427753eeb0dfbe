"""A sweep from Python: from axes of values to one table."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.program import device_bytes
from purejaxppo.parallel.runs import best_vmap_size, over_runs, padded_count
from purejaxppo.presets import with_settings
from purejaxppo.sweeps.axes import Settings, checked, of_python, show
from purejaxppo.sweeps.plan import batches, fit, group_settings
from purejaxppo.train import make_train
from purejaxppo.types import Metrics

Table = dict[str, np.ndarray]


def sweep(config: Config, axes: Mapping[str, Any], keys: jax.Array) -> Table:
    """Train every combination of the axes' values with every key, on all devices.

    Numbers that may be traced become one program; for each combination of static values there is one. What does not fit
    into memory at once is done in batches.

    Args:
        config: all other settings.
        axes: setting of the config or of its algorithm ↦ values. Of a static one, a list of Python values.
        keys: PRNG keys [S], the same for all settings.

    Returns:
        Tidy columns, all of one length, a row per setting, key and update, as `pandas.DataFrame` takes them: the axes,
        `seed` (which key), `update` (from 1), `env_steps`, then the metrics of `make_train`. Evaluations stand in the
        row of the update that they followed, NaN in others.

    Raises:
        UsageError: an unknown field, an empty axis, a static field as an array, a setting that cannot work, or one
            that does not fit into memory.
    """
    settings = of_python(config, axes)
    configs = checked(config, settings)
    if keys.ndim != 1 or not keys.size:
        raise UsageError(f"keys has shape {keys.shape} and must have [S]; pass jax.random.split(key, S).")
    tables: list[Table] = [{}] * len(settings)
    for group in group_settings(config, settings):
        devices = jax.devices()[: len(group.members) * len(keys)]
        vmap_size = best_vmap_size(configs[group.members[0]].on_host, devices)
        program = over_runs(partial(_train, configs[group.members[0]]), devices, vmap_size=vmap_size)
        arguments = partial(_arguments, settings, group.swept, keys, len(devices), vmap_size)
        compiled, size, _ = fit(
            partial(_compile, program, arguments, group.members), device_bytes, len(group.members), devices
        )
        for members in batches(group.members, size):
            metrics = {name: np.asarray(x) for name, x in compiled(*arguments(members, size)).items()}
            for j, i in enumerate(members):
                own = slice(j * len(keys), (j + 1) * len(keys))
                tables[i] = _rows(configs[i], settings[i], {name: x[own] for name, x in metrics.items()})
    names = dict.fromkeys(name for table in tables for name in table)
    lengths = [len(table["seed"]) for table in tables]
    missing = [np.full(length, np.nan) for length in lengths]
    return {
        name: np.concatenate([table.get(name, nan) for table, nan in zip(tables, missing, strict=True)])
        for name in names
    }


def _train(config: Config, own: dict[str, jax.Array], key: jax.Array) -> Metrics:
    return make_train(with_settings(config, own))(key)[1]


def _compile(program: Any, arguments: Callable[[list[int], int], Any], members: list[int], count: int) -> Any:
    return program.lower(*arguments(members[:count], count)).compile()


def _arguments(
    settings: list[Settings],
    swept: tuple[str, ...],
    keys: jax.Array,
    devices: int,
    vmap_size: int | None,
    members: list[int],
    size: int,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Swept numbers and keys of `size` settings, the last repeated until there are as many as the program takes."""
    runs = np.arange(padded_count(size * len(keys), devices, vmap_size))
    which = np.minimum(runs, len(members) * len(keys) - 1)
    own = {name: jnp.asarray([settings[i][name] for i in members], jnp.float32)[which // len(keys)] for name in swept}
    return own, keys[which % len(keys)]


def _rows(config: Config, own: dict[str, Any], metrics: dict[str, np.ndarray]) -> Table:
    """The rows of one setting; metrics are [S, updates], those of evaluations [S, evaluations]."""
    seeds, updates = metrics["alive"].shape
    update = np.arange(1, updates + 1)
    columns = {name: np.full((seeds, updates), show(x) if isinstance(x, tuple) else x) for name, x in own.items()}
    columns["seed"] = np.repeat(np.arange(seeds)[:, None], updates, axis=1)
    columns["update"] = np.repeat(update[None], seeds, axis=0)
    columns["env_steps"] = columns["update"] * (config.num_envs * config.num_steps)
    for name, x in metrics.items():
        if x.shape[1] == updates:
            columns[name] = x
        else:
            columns[name] = np.full((seeds, updates), np.nan)
            columns[name][:, (update % config.eval_interval == 0) | (update == updates)] = x
    return {name: x.ravel() for name, x in columns.items()}
