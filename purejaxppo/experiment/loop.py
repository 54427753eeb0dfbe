"""One experiment, from a config to a run directory."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.config import Config
from purejaxppo.evaluate import evaluate
from purejaxppo.experiment import checkpoint
from purejaxppo.experiment.devices import available_bytes, over_runs
from purejaxppo.experiment.figure import learning_curve
from purejaxppo.experiment.logging import MetricsFile, new_directory, versions, write_json
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.statistics import iqm, iqm_interval
from purejaxppo.presets import settings_of
from purejaxppo.train import evaluation_key, init, update_step
from purejaxppo.types import Metrics, TrainState, UsageError

Summary = dict[str, Any]


class Program(NamedTuple):
    """A run's compiled pieces, each for all seeds at once."""

    init: Callable[..., Any]  # keys -> state
    advance: Callable[..., Any]  # state, count -> state, metrics [seeds, capacity], the first `count` filled
    evaluate: Callable[..., Any]  # state -> Evaluation, at intervals
    final: Callable[..., Any]  # state -> Evaluation, after training


def compile_program(
    config: Config, devices: list[jax.Device], keys: jax.Array, capacity: int, final_episodes: int
) -> Program:
    """Compile everything that a run needs, side by side: XLA releases the interpreter while it works.

    Args:
        capacity: updates per call of `advance` at most. One program serves every number up to it.
    """

    def advance(state: TrainState, count: jax.Array) -> tuple[TrainState, Metrics]:
        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, buffers = carry
            state, metrics = update_step(config, state)
            put = jax.lax.dynamic_update_index_in_dim  # under `vmap`, `.at[i].set` would be a scatter
            return state, jax.tree.map(lambda buffer, x: put(buffer, x, i, 0), buffers, metrics)

        _, shapes = jax.eval_shape(lambda state: update_step(config, state), state)
        buffers = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, buffers))

    def evaluation(episodes: int) -> Callable[[TrainState], Any]:
        return lambda state: evaluate(config, state, evaluation_key(state), episodes)

    start = over_runs(lambda key: init(config, key), devices)
    state = jax.eval_shape(start, keys)
    jobs: list[tuple[Any, tuple[Any, ...]]] = [
        (over_runs(advance, devices, shared=1, donate=True), (state, jax.ShapeDtypeStruct((), jnp.int32))),
        (start, (keys,)),
        (over_runs(evaluation(final_episodes), devices), (state,)),
    ]
    if config.eval_interval:
        jobs.append((over_runs(evaluation(config.eval_episodes), devices), (state,)))
    with ThreadPoolExecutor() as pool:
        step, begin, final, *between = pool.map(lambda job: job[0].lower(*job[1]).compile(), jobs)
    return Program(begin, step, between[0] if between else final, final)


def check_memory(config: Config, runs: int, devices: list[jax.Device]) -> None:
    """Refuse a run whose states and rollouts alone would not fit.

    Counted are: the state twice (the update's input and output), four copies of each observation (as recorded, as
    reached, normalised, gathered), and the activations that a backward pass keeps of one minibatch.

    Raises:
        UsageError: more is needed than the devices have free.
    """

    def size(tree: Any) -> int:
        return sum(math.prod(x.shape) * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(tree))

    one = jax.eval_shape(lambda key: init(config.replace(num_envs=1), key), jax.random.key(0))
    batch = config.num_envs * config.num_steps
    activations = 4 * (sum(config.hidden_sizes) + 16) // config.num_minibatches
    state = size(one) + size(one.rollout) * config.num_envs
    need = runs * (2 * state + batch * (4 * size(one.rollout.obs) + activations))
    free = available_bytes(devices[0])
    if free is None:
        return
    if devices[0].platform != "cpu":  # the devices of a CPU share one memory, others have one each
        free *= len(devices)
    if need > free:
        raise UsageError(
            f"num_seeds × num_envs × num_steps = {runs * batch:,} samples need about {need / 2**30:,.1f} GiB and "
            f"{free / 2**30:,.1f} GiB are free; lower --num-seeds, --num-envs or --num-steps."
        )


def run_experiment(
    config: Config,
    seeds: list[int],
    out: Path,
    devices: list[jax.Device],
    progress: ProgressLine,
    log_interval: int | None = None,
    final_episodes: int = 100,
) -> Summary:
    """Train all seeds, leave the run directory's files, return its summary.

    The result is that of `make_train(config)` bit for bit, whatever the intervals.

    Raises:
        UsageError: before compilation, if the run cannot work; during it, if a loss or gradient turns non-finite. The
            log up to there is kept.
    """
    config.check()
    devices = devices[: len(seeds)]
    runs = -(-len(seeds) // len(devices)) * len(devices)  # a device left over trains a copy of the last seed
    check_memory(config, runs, devices)
    new_directory(out)
    settings, batch = settings_of(config), config.num_envs * config.num_steps
    prng = str(jax.random.key_impl(jax.random.key(0)))
    about = {"settings": settings, "seeds": seeds, "versions": versions(), "prng_implementation": prng}
    write_json(out / "config.json", about)

    interval = min(log_interval or -(-config.num_updates // 100), config.num_updates)
    stops = _stops(config.num_updates, interval, config.eval_interval)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds + seeds[-1:] * (runs - len(seeds)), np.uint32))
    curve: list[np.ndarray] = []
    with progress, MetricsFile(out / "metrics.csv", seeds) as log:
        if config.env_steps != config.total_steps:
            progress.say(
                f"total_steps = {config.total_steps:,} is rounded up to {config.env_steps:,}: {config.num_updates:,} "
                f"updates of {batch:,} steps."
            )
        progress.stage("compiling")
        began = time.monotonic()
        program = compile_program(config, devices, keys, interval, final_episodes)
        compiled = time.monotonic()

        progress.stage("training")
        state, done = program.init(keys), 0
        for stop in stops:
            state, metrics = program.advance(state, np.int32(stop - done))
            history = {name: x[: len(seeds), : stop - done] for name, x in jax.device_get(metrics).items()}
            row = _over_interval(history)
            if config.eval_interval:
                due = stop % config.eval_interval == 0 or stop == config.num_updates
                evaluation = program.evaluate(state).means() if due else _NOT_EVALUATED
                row |= {name: np.broadcast_to(x, runs)[: len(seeds)] for name, x in evaluation.items()}
            log.write(stop, stop * batch, row)
            curve.append(row["episode_return"])
            progress.advance(stop * batch * len(seeds), iqm(row["episode_return"]))
            _refuse_non_finite(history, seeds, done, out)
            done = stop
        trained = time.monotonic()

        progress.stage("evaluating")
        returns = np.asarray(program.final(state).returns)[: len(seeds)].mean(axis=1)
    checkpoint.save(out / "checkpoints" / str(config.env_steps), jax.tree.map(lambda x: x[: len(seeds)], state))
    env = config.env if isinstance(config.env, str) else repr(config.env)
    learning_curve(out / "learning_curve.png", f"{settings['algo']} on {env}", [stop * batch for stop in stops], curve)
    low, high = iqm_interval(returns)
    scores = {"mean": float(returns.mean()), "iqm": iqm(returns), "ci_low": low, "ci_high": high}
    summary = {
        "algo": settings["algo"],
        "env": env,
        "num_seeds": len(seeds),
        "env_steps": config.env_steps,
        "eval_return": scores | {"per_seed": returns.astype(float).tolist()},
        "steps_per_second": config.env_steps * len(seeds) / (trained - compiled),
        "compile_seconds": compiled - began,
        "run_seconds": trained - compiled,
        "device": f"{len(devices)} × {devices[0].device_kind}",
    }
    write_json(out / "summary.json", summary)
    return summary


_NOT_EVALUATED = {"eval_return": np.nan, "eval_length": np.nan}


def _stops(num_updates: int, *intervals: int) -> list[int]:
    """The updates after which the host looks: every multiple of each interval (0 is none), and the last."""
    return sorted({u for i in intervals if i for u in range(i, num_updates, i)} | {num_updates})


def _over_interval(history: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics [seeds, updates] → [seeds]: means, those of episodes weighted by how many there were."""
    episodes = history["episodes"]
    row = {name: x.mean(axis=1) for name, x in history.items()}
    row["episodes"] = episodes.sum(axis=1)
    for name in ("episode_return", "episode_length"):
        total = np.where(episodes > 0, history[name], 0.0) * episodes
        with np.errstate(invalid="ignore"):
            row[name] = total.sum(axis=1) / row["episodes"]
    return row


def _refuse_non_finite(history: dict[str, np.ndarray], seeds: list[int], done: int, out: Path) -> None:
    for name in history.keys() & {"policy_loss", "value_loss", "grad_norm", "value_grad_norm"}:
        sick = np.argwhere(~np.isfinite(history[name]))
        if sick.size:
            seed, update = sick[np.argmin(sick[:, 1])]
            raise UsageError(
                f"{name} = {history[name][seed, update]} for seed {seeds[seed]} at update {done + update + 1} is not "
                f"finite; check the environment's rewards, or lower --learning-rate. The log so far is in {out}."
            )
