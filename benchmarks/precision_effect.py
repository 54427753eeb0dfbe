"""What rough matrix products change in learning: TF32 and bfloat16, emulated on a CPU by rounding operands.

    python benchmarks/precision_effect.py                     # some minutes
    python benchmarks/precision_effect.py --seeds 16 --updates 48

A chip rounds the operands of a matrix product to TF32 (10 bits of mantissa: GPUs) or bfloat16 (7 bits: TPUs) where
`precision` is default, and sums up in float32. Here the networks' products do so, forward and in their derivatives.
What a setting costs on a chip is in `results/gpu_program.md`, estimated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.networks import torso
from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import preset
from purejaxppo.train import make_train

RESULTS = Path(__file__).parent / "results" / "precision_effect.json"
BITS = {"float32": 23, "TF32": 10, "bfloat16": 7}
CASES = [
    ("ppo", "CartPole-v1", "default", ""),
    ("trpo", "CartPole-v1", "default", "default"),
    ("trpo", "Pendulum-v1", "default", "default"),
    ("trpo", "Pendulum-v1", "default", "highest"),
]


def rounding(bits: int) -> Any:
    """x · W of rounded operands, unless the highest precision is asked for; tangents are rounded likewise."""

    def rounded(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)

    @jax.custom_jvp
    def rough(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return rounded(x) @ rounded(kernel)

    @rough.defjvp
    def rough_jvp(primals: Any, tangents: Any) -> Any:
        (x, kernel), (dx, dkernel) = primals, tangents
        return rough(x, kernel), rounded(dx) @ rounded(kernel) + rounded(x) @ rounded(dkernel)

    def matmul(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        exact = jax.config.jax_default_matmul_precision == "highest"
        return x @ kernel if exact else rough(x, kernel)

    return matmul


def trained(algo: str, env: str, step: str, bits: int, seeds: int, updates: int) -> dict[str, Any]:
    """Means over the last tenth of training, by seed."""
    torso.matmul = torso.narrow_matmul = rounding(bits)
    config = preset(algo, env)
    if step:
        config = config.replace(algo=config.algo.replace(step_precision=step))
    config = config.replace(total_steps=updates * config.num_envs * config.num_steps)
    _, metrics = over_runs(make_train(config), jax.devices())(jax.random.split(jax.random.key(0), seeds))
    last = slice(-max(1, updates // 10), None)
    returns = np.nanmean(np.asarray(metrics["episode_return"])[:, last], axis=1)
    row: dict[str, Any] = {"return_mean": float(returns.mean()), "return_std": float(returns.std(ddof=1))}
    if step:
        row["cg_residual_median"] = float(np.median(metrics["cg_residual"]))
        row["accepted"] = float(np.mean(metrics["accepted"]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    use_cpu_cores()
    rows = []
    for algo, env, precision, step in CASES:
        for kind, bits in BITS.items():
            if kind == "float32" and step == "highest":
                continue
            row = {"algo": algo, "env": env, "precision": precision, "step_precision": step, "default_is": kind}
            row |= {"seeds": args.seeds, "updates": args.updates}
            row |= trained(algo, env, step, bits, args.seeds, args.updates)
            rows.append(row)
            print(json.dumps(row), flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
