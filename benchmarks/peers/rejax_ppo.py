# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "rejax==0.1.3",
#     "jax==0.10.2",
#     "flax==0.12.8",
#     "optax==0.2.8",
#     "distrax==0.1.9",
#     "tfp-nightly==0.26.0.dev20261027",
#     "gymnax==0.0.9",
#     "six",
# ]
# ///
"""rejax's PPO, vmapped over seeds as its README shows; its evaluation after training instead of during it."""

import chip
import common
import jax
import jax.numpy as jnp
from rejax import PPO

NOTE = "return: its evaluation after training; clips gradients element by element; its Dense layers' default init"


def main() -> None:
    job = common.job()
    algo = PPO.create(
        env=job.env,
        agent_kwargs={"hidden_layer_sizes": common.HIDDEN_SIZES, "activation": job.activation},
        num_envs=job.envs,
        num_steps=job.num_steps,
        num_epochs=job.num_epochs,
        num_minibatches=job.num_minibatches,
        total_timesteps=job.steps,
        eval_freq=job.steps,
        skip_initial_evaluation=True,
        learning_rate=job.annealed,
        max_grad_norm=common.MAX_GRAD_NORM,
        gamma=common.GAMMA,
        gae_lambda=common.GAE_LAMBDA,
        clip_eps=common.CLIP_EPS,
        ent_coef=common.ENTROPY_COEF,
        vf_coef=common.VALUE_COEF,
    )
    evaluate = algo.eval_callback
    algo = algo.replace(eval_callback=lambda algo, state, key: jnp.zeros(()))
    keys = jax.random.split(jax.random.PRNGKey(0), job.seeds)
    train = jax.jit(jax.vmap(algo.train))
    if job.chip:
        return chip.keep(train, keys, chip.devices(job.chip), job.hlo)
    (states, _), cost = common.timed_compiled(train, keys)
    one = jax.tree.map(lambda x: x[:8], states)  # of many seeds, eight are enough to see that it learns
    _, returns = jax.jit(jax.vmap(lambda state: evaluate(algo, state, state.rng)))(one)
    common.report(job, cost, float(returns.mean()), "rejax jax flax optax gymnax", NOTE)


if __name__ == "__main__":
    main()
