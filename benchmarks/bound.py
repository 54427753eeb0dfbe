"""The bound: how fast this machine could go at exactly our shapes, and what fraction of that each phase reaches.

    python benchmarks/bound.py --algo ppo --num-seeds 16

Every phase of an update (rollout, advantages, policy, critic) is repeated in a program of its own, laid over devices
as in training; beside it stand the matmuls that it cannot avoid, with the same shapes and alone. Their time over the
phase's is the fraction of the matmul rate that the phase reaches. The whole update is timed likewise; what it takes
beyond its phases is bookkeeping, or gained by their overlap.
"""

import argparse
import functools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo.agent import Agent
from purejaxppo.config import Config
from purejaxppo.improvement import update_rule, value_loss
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.parallel.devices import choose_devices, use_cpu_cores
from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import preset
from purejaxppo.rollout import rollout
from purejaxppo.train import init, learning_batch, update_step
from purejaxppo.types import Batch, TrainState, Transition

Shape = tuple[int, int, int]  # a matmul [m, k] × [k, n]
Data = tuple[TrainState, Transition, Batch]


def layers(params: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of a network's matmuls; the first is the one whose input needs no gradient."""
    return [x.shape for _, x in sorted(jax.tree_util.tree_leaves_with_path(params), key=str) if x.ndim == 2]


def forward(kernels: list[tuple[int, int]], samples: int) -> Counter[Shape]:
    return Counter((samples, i, o) for i, o in kernels)


def backward(kernels: list[tuple[int, int]], samples: int) -> Counter[Shape]:
    """To the weights of every layer, and to the inputs of every layer but the first."""
    return Counter((i, samples, o) for i, o in kernels) + Counter((samples, o, i) for i, o in kernels[1:])


def times(work: Counter[Shape], count: int) -> Counter[Shape]:
    return Counter({shape: number * count for shape, number in work.items()})


def matmuls(config: Config, state: TrainState) -> dict[str, Counter[Shape]]:
    """What each phase of one run's update must multiply. Convolutions count once, as one matmul on one patch."""
    samples, part = config.num_envs * config.num_steps, config.num_envs * config.num_steps // config.num_minibatches
    policy, critic, passes = layers(state.policy), layers(state.critic), config.num_epochs * config.num_minibatches
    algo: Any = config.algo
    if hasattr(algo, "cg_iterations"):
        few = samples // algo.fisher_subsample
        tangent = forward(policy, few) + forward(policy[1:], few)  # J v: through the weights, and through the inputs
        once = forward(policy, samples) + backward(policy, samples) + forward(policy, few) + forward(policy, samples)
        moved = once + times(tangent + backward(policy, few), algo.cg_iterations)
    elif hasattr(algo, "clip_eps") or hasattr(algo, "kl_coef"):
        moved = times(forward(policy, part) + backward(policy, part), passes) + forward(policy, samples)
    else:
        moved = forward(policy, samples) + backward(policy, samples) + forward(policy, samples)
    return {
        "rollout": times(forward(policy, config.num_envs), config.num_steps),
        "advantages": times(forward(critic, samples), 2),
        "policy": moved,
        "critic": times(forward(critic, part) + backward(critic, part), passes),
    }


def phases(config: Config) -> dict[str, Callable[[Data], Data]]:
    """Each phase as a map of (state, transitions, batch), that it may be repeated."""

    def collect(data: Data) -> Data:
        state, _, batch = data
        key = jax.random.fold_in(state.key, 0)
        episodes, transitions, _ = rollout(
            key, config.environment, Agent.of(config).make_policy(state), state.rollout, config.num_steps
        )
        return state.replace(rollout=episodes, key=key), transitions, batch

    def estimate(data: Data) -> Data:
        state, transitions, _ = data
        batch, normalizer, _ = learning_batch(Agent.of(config), state, transitions)
        return state.replace(reward_normalizer=normalizer), transitions, batch

    def adam(state: TrainState) -> MinibatchAdam:
        return MinibatchAdam(
            1e-9 * state.update, 0.5, config.num_epochs, config.num_minibatches
        )  # all but stands still

    def move_policy(data: Data) -> Data:
        state, transitions, batch = data
        update = update_rule(Agent.of(config), state.key, state.policy, state.algorithm, batch, adam(state))
        params, algorithm, _ = update()
        still = jax.tree.map(lambda old, new: jnp.where(jnp.isnan(new), new, old), state.policy, params)
        return state.replace(policy=still, algorithm=algorithm), transitions, batch

    def fit_critic(data: Data) -> Data:
        state, transitions, batch = data
        params, moments, _ = adam(state).minimize(
            state.key, value_loss(Agent.of(config)), state.critic, state.critic_optimizer, batch
        )
        return state.replace(critic=params, critic_optimizer=moments), transitions, batch

    def whole(data: Data) -> Data:
        return update_step(config, data[0])[0], *data[1:]

    return {
        "rollout": collect,
        "advantages": estimate,
        "policy": move_policy,
        "critic": fit_critic,
        "whole update": whole,
    }


def repeated(fn: Callable[[Any], Any], count: int) -> Callable[[Any], Any]:
    """`fn` so many times over, none of it lifted out of the loop."""
    return lambda data: jax.lax.fori_loop(0, count, lambda _, x: fn(jax.lax.optimization_barrier(x)), data)


def multiply(shape: Shape, data: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One matmul whose result the next one waits for."""
    left, right, _ = data
    product = left @ right
    return left, right.at[0, 0].set(product[0, 0] * 1e-20), product


def seconds(fn: Callable[[Any], Any], data: Any, devices: list[jax.Device], least: float, rounds: int) -> float:
    """Median time of one `fn` for all runs, repeated until that takes `least` seconds."""
    count = 1
    while True:
        program = over_runs(repeated(fn, count), devices).lower(data).compile()
        jax.block_until_ready(program(data))
        measured = []
        for _ in range(rounds):
            began = time.perf_counter()
            jax.block_until_ready(program(data))
            measured.append(time.perf_counter() - began)
        if np.median(measured) >= least:
            return float(np.median(measured)) / count
        count = max(2 * count, int(1.3 * count * least / max(float(np.median(measured)), 1e-6)))


def bound(config: Config, num_seeds: int, rounds: int, least: float) -> dict[str, Any]:
    devices = choose_devices(None)
    devices = devices[: max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)]
    work = phases(config)

    def begin(key: jax.Array) -> Data:
        state = init(config, key)
        _, transitions, _ = rollout(
            key, config.environment, Agent.of(config).make_policy(state), state.rollout, config.num_steps
        )
        state = update_step(config, state)[0]
        return state, transitions, learning_batch(Agent.of(config), state, transitions)[0]

    data = over_runs(begin, devices)(jax.random.split(jax.random.key(0), num_seeds))
    needed = matmuls(config, jax.eval_shape(functools.partial(init, config), jax.random.key(0)))
    rates = {}
    for shape in set().union(*needed.values()):
        m, k, n = shape
        operands = tuple(jnp.ones((num_seeds, *size)) for size in ((m, k), (k, n), (m, n)))
        rates[shape] = seconds(functools.partial(multiply, shape), operands, devices, least / 4, 3)
    rows = {name: {"seconds": seconds(fn, data, devices, least, rounds)} for name, fn in work.items()}
    needed["whole update"] = sum(needed.values(), Counter())
    for name, row in rows.items():
        flops = num_seeds * sum(2 * m * k * n * count for (m, k, n), count in needed[name].items())
        matmul = sum(rates[shape] * count for shape, count in needed[name].items())
        row |= {"gflop": flops / 1e9, "gflop_per_s": flops / 1e9 / row["seconds"], "matmul_seconds": matmul}
        row |= {"of_matmul_rate": matmul / row["seconds"], "share": row["seconds"] / rows["whole update"]["seconds"]}
    steps = num_seeds * config.num_envs * config.num_steps
    return {
        "phases": rows,
        "matmul_gflop_per_s": {
            "×".join(map(str, shape)): 2 * num_seeds * float(np.prod(shape)) / 1e9 / each
            for shape, each in sorted(rates.items())
        },
        "steps_per_second": steps / rows["whole update"]["seconds"],
        "steps_per_second_if_only_matmuls": steps / rows["whole update"]["matmul_seconds"],
        "devices": [str(device.device_kind) for device in devices],
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| phase | ms | share | GFLOP/s | of the matmul rate |", "|---|---|---|---|---|"]
    for name, row in found["phases"].items():
        lines.append(
            f"| {name} | {1e3 * row['seconds']:.3f} | {row['share']:.0%} | {row['gflop_per_s']:.1f} "
            f"| {row['of_matmul_rate']:.0%} |"
        )
    lines.append("")
    lines.append(
        f"{found['steps_per_second']:,.0f} steps/s; were there nothing but its matmuls: "
        f"{found['steps_per_second_if_only_matmuls']:,.0f}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--num-seeds", type=int, default=16)
    parser.add_argument("--num-envs", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.4, help="seconds that one measurement lasts at least")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    chosen = parser.parse_args()
    use_cpu_cores()
    config = preset(chosen.algo, chosen.env, **({"num_envs": chosen.num_envs} if chosen.num_envs else {}))
    result = bound(config, chosen.num_seeds, chosen.rounds, chosen.least)
    print(table(result))
    for shape, rate in result["matmul_gflop_per_s"].items():
        print(f"matmul {shape}: {rate:.1f} GFLOP/s")
    if chosen.out:
        chosen.out.write_text(json.dumps({"algo": chosen.algo, "env": chosen.env, **result}, indent=2) + "\n")
