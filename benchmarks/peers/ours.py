"""purejaxppo itself, PPO or TRPO: all seeds as one program, spread over the devices; one seed as `--mesh net=2` does.

With --one-core it has one device and one thread, as the command line gives one small run if not told otherwise.

Runs in the environment of `throughput.py`. With --cache it compiles only, through JAX's persistent cache.
"""

import json
import math
import time
from typing import Any

import common
import jax
import numpy as np

import purejaxppo
from purejaxppo import PPO, TRPO, Config, make_train
from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.parallel.runs import best_vmap_size, over_runs

SHARED = 64  # environments of one run from which on they are shared out, where there are devices enough


def settings(job: common.Job) -> Config:
    if job.algo == "ppo":
        algo: Any = PPO(clip_eps=common.CLIP_EPS, entropy_coef=common.ENTROPY_COEF)
    else:
        algo = TRPO(max_kl=common.MAX_KL, cg_iterations=common.CG_ITERATIONS, damping=common.DAMPING)
    return Config(
        env=job.env,
        algo=algo,
        num_envs=job.envs,
        num_steps=job.num_steps,
        total_steps=job.steps,
        gamma=common.GAMMA,
        gae_lambda=common.GAE_LAMBDA,
        learning_rate=job.learning_rate,
        anneal_learning_rate=job.algo == "ppo",
        max_grad_norm=common.MAX_GRAD_NORM,
        num_epochs=job.num_epochs,
        num_minibatches=job.num_minibatches,
        hidden_sizes=common.HIDDEN_SIZES,
        activation=job.activation,
        convolutions=not job.minatar,
    )


def shards(job: common.Job, config: Config) -> tuple[int, int]:
    """Devices that share the environments of a run; and 2 where its policy and critic have devices of their own."""
    if job.seeds > 1 or config.on_host or jax.default_backend() != "cpu" or (count := jax.device_count()) == 1:
        return 1, 1
    return (count // 2 if job.envs >= SHARED else 1), 2


def main() -> None:
    job = common.job()
    use_cpu_cores(alone=job.one_core)
    if job.cache:
        jax.config.update("jax_compilation_cache_dir", str(job.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = settings(job)
    env, net = shards(job, config)
    devices = jax.devices()[: env * net * math.gcd(job.seeds, jax.device_count() // (env * net))]
    together = best_vmap_size(config.on_host, devices)
    train = over_runs(make_train(config), devices, env_shards=env, net_shards=net, vmap_size=together)
    keys = jax.random.split(jax.random.key(0), job.seeds)
    if job.cache:
        began = time.perf_counter()
        train.lower(keys).compile()
        print(json.dumps({"compile_seconds": time.perf_counter() - began}))
        return
    (_, metrics), cost = common.timed_compiled(train, keys)
    last = slice(-max(1, job.updates // 10), None)
    returns, episodes = (np.asarray(metrics[name])[:, last] for name in ("episode_return", "episodes"))
    final_return = float(np.nansum(returns * episodes) / episodes.sum()) if episodes.any() else None
    common.report(job, cost, final_return, "jax flax optax gymnax", f"purejaxppo {purejaxppo.__version__}")


if __name__ == "__main__":
    main()
