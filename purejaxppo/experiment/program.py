"""What a run compiles."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Config
from purejaxppo.evaluation import evaluate
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.kernels.choice import noted
from purejaxppo.parallel.devices import process_bytes, require_memory
from purejaxppo.parallel.machine import for_other_thread
from purejaxppo.parallel.runs import abstract_args, over_runs
from purejaxppo.precision import single_precision
from purejaxppo.presets import with_settings
from purejaxppo.train import init, update_step
from purejaxppo.types import Metrics, TrainState

# means over episodes; all others are means over updates
PER_EPISODE = ("episode_return", "episode_length", "success_rate")
ROWS = 128  # of the log, that one call of `advance` may fill


class Program(NamedTuple):
    """A run's compiled pieces, each for all seeds at once."""

    metrics: list[str]  # the columns of totals; the last, "updates", counts updates
    compile_seconds: float
    device_bytes: int  # that a device needs at the worst moment, by XLA's account
    init: Callable[..., Any]  # keys, swept, what they begin with -> state
    # state, swept, totals [runs, columns], done, count -> state, rows [runs, ROWS, columns]
    advance: Callable[..., Any]
    evaluate: Callable[..., Any]  # state, swept -> Evaluation, at intervals
    final: Callable[..., Any]  # state, swept -> Evaluation, after training
    notes: list[str]  # which parts of an update are kernels of ours

    def check_fit(self, devices: list[jax.Device], what: str, way: str) -> None:
        """By XLA's own account. Raises: UsageError: there is not so much memory for `what`; lower `way`."""
        require_memory(process_bytes(self.device_bytes, devices), devices, what, way)


def compile_program(runs: RunBatch) -> Program:
    """Compile everything that the runs need, side by side: XLA releases the interpreter while it works.

    `advance` makes `count` updates after `done` ones. It takes the sums of what the present row of the log has so far,
    and returns those of this row and of the rows after it, one more at each multiple of `log_interval`. So rows do not
    depend on how updates are divided into calls. The state that it is given is used up. `swept` are settings of which
    each run has its own, [runs].
    """
    began, config, options, devices = time.monotonic(), runs.config, runs.options, runs.devices
    log_interval = runs.timetable.rows_every
    env, net = options.mesh_shape.env, options.mesh_shape.net
    vmap_size = options.vmap_size(config, devices)
    lay = partial(over_runs, devices=devices, env_shards=env, net_shards=net, vmap_size=vmap_size)
    place = partial(abstract_args, devices=devices, env_shards=env, net_shards=net)
    start = lay(lambda key, own, learnt: init(with_settings(config, own), key, learnt))
    keys = place(runs.keys)
    own = place({name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in runs.swept.items()})
    learnt = place(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), runs.learnt))
    state = place(jax.eval_shape(start, keys, own, learnt))

    @jax.jit  # traced once, as its names are asked for where its work is done, on the same mesh
    def update(state: TrainState, own: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        return update_step(with_settings(config, own), state)

    with noted() as notes:
        names = [*sorted(jax.eval_shape(lay(update), state, own)[1]), "updates"]

    @single_precision
    def advance(
        state: TrainState, own: dict[str, jax.Array], totals: jax.Array, done: jax.Array, count: jax.Array
    ) -> tuple[TrainState, Any]:
        def body(i: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, metrics = update(carry[0], own)
            row = (done + i) // log_interval - done // log_interval
            so_far = jax.lax.dynamic_index_in_dim(carry[1], row, keepdims=False)
            # under `vmap`, `.at[row].set` would be a scatter
            return state, jax.lax.dynamic_update_index_in_dim(carry[1], so_far + summands(metrics, names), row, 0)

        rows = jnp.zeros((ROWS, len(names))).at[0].set(totals)
        return jax.lax.fori_loop(0, count, body, (state, rows))

    def evaluation(episodes: int) -> Callable[[TrainState, dict[str, jax.Array]], Any]:
        return lambda state, own: evaluate(with_settings(config, own), state, state.key, episodes)

    totals = place(jax.ShapeDtypeStruct((len(keys), len(names)), jnp.float32))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    jobs: list[tuple[Any, tuple[Any, ...]]] = [
        (lay(advance, shared=2, donate=True), (state, own, totals, number, number)),
        (start, (keys, own, learnt)),
        (lay(evaluation(options.final_episodes)), (state, own)),
    ]
    if config.eval_interval:
        jobs.append((lay(evaluation(config.eval_episodes)), (state, own)))
    with ThreadPoolExecutor() as pool:
        compiled = [*pool.map(for_other_thread(lambda job: job[0].lower(*job[1]).compile()), jobs)]
    step, first, final, *between = compiled
    evaluate_between = between[0] if between else final
    took, need = time.monotonic() - began, max(map(device_bytes, compiled))
    return Program(names, took, need, first, step, evaluate_between, final, notes)


def device_bytes(compiled: Any) -> int:
    """What a compiled program takes on each device: arguments, results that do not reuse them, and all between."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.argument_size_in_bytes + results + memory.temp_size_in_bytes)


def summands(metrics: Metrics, names: list[str]) -> jax.Array:
    """What one update adds to the totals, [len(names)]: means over episodes times their number, 0 of a frozen seed."""
    episodes = metrics["episodes"]

    def summand(name: str) -> jax.Array:
        if name == "updates":
            return jnp.ones(())
        x = metrics[name]
        if name in PER_EPISODE:
            x = jnp.where(episodes > 0, x * episodes, 0.0)
        return jnp.where(metrics["alive"] > 0, x, 0.0)

    return jnp.stack([summand(name) for name in names])


def means(names: list[str], totals: np.ndarray) -> dict[str, np.ndarray]:
    """A row of the log, each metric [runs], of totals [runs, len(names)]. NaN where there was nothing."""
    sums = dict(zip(names, totals.astype(np.float64).T, strict=True))
    updates, alive, episodes = sums.pop("updates"), sums["alive"], sums["episodes"]
    with np.errstate(invalid="ignore"):
        row = {name: x / (episodes if name in PER_EPISODE else alive) for name, x in sums.items()}
    return row | {"episodes": np.where(alive > 0, episodes, np.nan), "alive": alive / updates}


def check_memory(config: Config, runs: int, devices: list[jax.Device], options: HostOptions) -> None:
    """Refuse runs whose states and rollouts alone would not fit.

    Counted are, on each device: the state twice (the update's input and output), four copies of each observation (as
    recorded, as reached, normalised, gathered), and the activations that a backward pass keeps of one minibatch; or,
    if that is more, the environments of an evaluation, which plays all its episodes at once. Of runs that wait while
    others are made, only the state. Where devices share a run, on `env` each has its part of the environments
    and all of everything else, on `net` all.

    Raises:
        UsageError: more is needed than the devices have free.
    """

    def size(tree: Any) -> int:
        return sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(tree))

    runs = options.padded(config, runs, devices)
    one = jax.eval_shape(lambda key: init(config.replace(num_envs=1), key), jax.random.key(0))
    num_envs = config.num_envs // options.mesh_shape.env
    batch = num_envs * config.num_steps
    remembered = 8 * config.recurrent_size if config.is_recurrent else 0  # gates and hidden states of a cell
    activations = 4 * (sum(config.hidden_sizes) + remembered + 16) // config.num_minibatches
    state = size(one) + size(one.rollout) * num_envs
    episodes = max(options.final_episodes, config.eval_episodes if config.eval_interval else 0)
    update = 2 * state + batch * (4 * size(one.rollout.obs) + activations)
    on_one = runs * options.mesh_shape.devices_per_run // len(devices)
    vmap_size = min(on_one, options.vmap_size(config, devices) or on_one)
    waiting = (on_one - vmap_size) * state
    need = vmap_size * max(update, state + 2 * size(one.rollout) * episodes) + waiting
    what = f"num_seeds × num_envs × num_steps = {runs * config.steps_per_update:,} samples"
    way = "--num-seeds, --num-envs or --num-steps"
    if need > vmap_size * update + waiting:
        what, way = f"{vmap_size * episodes:,} episodes at once", "--final-episodes or --eval-episodes"
    require_memory(need, devices, what, way)
