# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "brax==0.14.2",
#     "jax==0.9.2",
#     "flax==0.12.6",
#     "optax==0.2.8",
#     "gymnax==0.0.9",
#     "six",
# ]
# ///
"""brax's PPO on gymnax environments, adapted to brax's protocol. One seed.

brax has continuous actions only: in CartPole the sign of a Gaussian action chooses the side.
"""

import functools
from typing import Any

import common
import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
from brax.envs.base import Env, State
from brax.training.agents.ppo import networks
from brax.training.agents.ppo.train import train

NOTE = (
    "gymnax dynamics; resets to one start state per environment; whole trajectories as minibatches; constant learning "
    "rate; CartPole's action is the sign of a Gaussian one; return: its evaluation, "
    "after three times the steps given (it compiles twice; the last third is timed)"
)


class Gymnax(Env):
    """One gymnax environment; time limits and resets are brax's wrappers' work."""

    def __init__(self, name: str) -> None:
        self.env, self.params = gymnax.make(name)
        self.discrete = hasattr(self.env.action_space(self.params), "n")

    def reset(self, rng: jax.Array) -> State:
        rng, reset_key = jax.random.split(rng)
        obs, state = self.env.reset_env(reset_key, self.params)
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)
        return State(state, obs, jnp.zeros(()), jnp.zeros(()), {}, {"rng": rng})

    def step(self, state: State, action: jax.Array) -> State:
        rng, step_key = jax.random.split(state.info["rng"])
        chosen = (action[0] > 0).astype(jnp.int32) if self.discrete else jnp.clip(action, -2.0, 2.0)  # Pendulum's bound
        obs, new, reward, done, _ = self.env.step_env(step_key, state.pipeline_state, chosen, self.params)
        new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype).reshape(old.shape), new, state.pipeline_state)
        return state.replace(
            pipeline_state=new,
            obs=obs.astype(state.obs.dtype),
            reward=jnp.float32(reward).reshape(()),
            done=jnp.float32(done),
            info=state.info | {"rng": rng},
        )

    @property
    def observation_size(self) -> int:
        return int(self.env.observation_space(self.params).shape[0])

    @property
    def action_size(self) -> int:
        return 1

    @property
    def backend(self) -> str:
        return "gymnax"


def main() -> None:
    job = common.job()
    env = Gymnax(job.env)
    seen: list[dict[str, Any]] = []
    _, cost = common.timed(
        lambda: train(
            env,
            num_timesteps=3 * job.steps,
            num_envs=job.envs,
            episode_length=env.params.max_steps_in_episode,
            learning_rate=job.learning_rate,
            entropy_cost=common.ENTROPY_COEF,
            discounting=common.GAMMA,
            unroll_length=job.num_steps,
            batch_size=job.envs // job.num_minibatches,
            num_minibatches=job.num_minibatches,
            num_updates_per_batch=job.num_epochs,
            clipping_epsilon=common.CLIP_EPS,
            gae_lambda=common.GAE_LAMBDA,
            max_grad_norm=common.MAX_GRAD_NORM,
            vf_loss_coefficient=common.VALUE_COEF,
            network_factory=functools.partial(
                networks.make_ppo_networks,
                policy_hidden_layer_sizes=common.HIDDEN_SIZES,
                value_hidden_layer_sizes=common.HIDDEN_SIZES,
                activation=nn.tanh,
                distribution_type="normal",
            ),
            num_evals=4,  # before, and after each third: the first two compile, the third is timed
            progress_fn=lambda _, metrics: seen.append(metrics),
        )
    )
    two, three = (metrics["training/walltime"] for metrics in seen[2:])
    third = three - two
    cost |= {
        "run_seconds": third,
        "compile_seconds": two - 2 * third,
        "peak_device_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "device": jax.devices()[0].device_kind,
    }
    common.report(job, cost, float(seen[-1]["eval/episode_reward"]), "brax jax flax optax gymnax", NOTE)


if __name__ == "__main__":
    main()
