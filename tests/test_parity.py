"""Three updates in float64 leave the parameters that Stable-Baselines3 and sb3-contrib arrive at, within 1e-6.

Both have the same weights, batches and order of minibatches. The losses are the same, but for these:

- Our TRPO tests KL(π_old ‖ π), as the paper has it, sb3-contrib KL(π ‖ π_old). With these batches both accept the same
  fraction of the step; the test says after how many backtracks.
- Its conjugate gradient stops at ‖r‖² < 1e-10, ours at 1e-10 · ‖g‖². Here neither stops before its last iteration.
- SB3 standardises advantages by the sample's standard deviation (N - 1), we by the population's (N); its clipped value
  loss is not the larger of two. Neither is used here.
- SB3's critics minimise (V - target)², ours half of it: `vf_coef` is half of our `value_coef`. Where the critic is
  alone, as in TRPO, Adam's ε is doubled, which for Adam is the same as halving the loss.
"""

import importlib.util
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo import A2C, PPO, TRPO, Config
from purejaxppo.agent import Agent
from purejaxppo.improvement import improve_apart, improve_jointly
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.optimize.permutation import permutation
from purejaxppo.rollout import rollout
from purejaxppo.train import init, learning_batch

SCRIPT = Path(__file__).parent / "peers" / "sb3_updates.py"
UPDATES, STEPS = 3, 256
COMMON = {"num_envs": 1, "num_steps": STEPS, "total_steps": UPDATES * STEPS, "hidden_sizes": (16, 16)}

# Ours beside SB3's settings; Adam's ε is theirs
CASES = {
    "ppo": (
        Config(
            algo=PPO(normalize_advantages="none", entropy_coef=0.01),
            joint_update=True,
            value_coef=1.0,
            value_clip_eps=float("inf"),
            max_grad_norm=0.5,
            num_epochs=4,
            num_minibatches=4,
            learning_rate=1e-3,
            **COMMON,
        ),
        {"n_epochs": 4, "batch_size": STEPS // 4, "ent_coef": 0.01, "normalize_advantage": False},
    ),
    "a2c": (
        Config(
            algo=A2C(entropy_coef=0.01),
            joint_update=True,
            value_coef=1.0,
            max_grad_norm=0.5,
            learning_rate=1e-3,
            **COMMON,
        ),
        {"use_rms_prop": False, "ent_coef": 0.01},
    ),
    "trpo": (
        Config(
            algo=TRPO(normalize_advantages=False, cg_iterations=5),
            num_epochs=5,
            num_minibatches=4,
            max_grad_norm=float("inf"),
            learning_rate=1e-3,
            **COMMON,
        ),
        {
            "n_critic_updates": 5,
            "batch_size": STEPS // 4,
            "cg_max_steps": 5,
            "target_kl": 0.01,
            "normalize_advantage": False,
        },
    ),
}
CASES["a2c rmsprop"] = (CASES["a2c"][0].replace(optimizer="rmsprop"), {**CASES["a2c"][1], "use_rms_prop": True})


def doubles(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def batches(config):
    """Three rollouts of the initial policy, and that state; numbers of float32 in float64."""
    state, agent = init(config, jax.random.key(0)), Agent.of(config)
    found = []
    for key in jax.random.split(jax.random.key(1), UPDATES):
        _, transitions, _ = rollout(key, agent.env, agent.make_policy(state), state.rollout, config.num_steps)
        batch, *_ = learning_batch(agent, state, transitions)
        batch = batch._replace(advantage=(batch.advantage - batch.advantage.mean()) / batch.advantage.std())
        found.append(batch)
    return doubles(state), doubles(found)


def orders(config, key):
    keys = jax.random.split(key, config.num_epochs)
    return np.stack([permutation(key, config.num_steps) for key in keys])


def torch_names(state):
    """Our parameters under SB3's names."""
    policy, critic = state.policy["params"], state.critic["params"]
    found = {}
    for ours, torso, last in ((policy, "policy_net", "action_net"), (critic, "value_net", "value_net")):
        layers = {
            f"mlp_extractor.{torso}.0": ours["Torso_0"]["Dense_0"],
            f"mlp_extractor.{torso}.2": ours["Torso_0"]["Dense_1"],
            last: ours["Dense_0"],
        }
        for name, layer in layers.items():
            found |= {f"{name}.weight": np.asarray(layer["kernel"]).T, f"{name}.bias": np.asarray(layer["bias"])}
    return found | ({"log_std": np.asarray(policy["log_std"])} if "log_std" in policy else {})


def our_updates(config, state, found, keys):
    """The parameters after each update, under SB3's names, and the metrics."""
    agent = Agent.of(config)
    adam = MinibatchAdam(config.learning_rate, config.max_grad_norm, config.num_epochs, config.num_minibatches)
    improve = improve_jointly if config.is_joint else improve_apart

    @jax.jit
    def update(state, key, batch):
        distribution = agent.policy.apply(state.policy, batch.obs)
        batch = batch._replace(
            distribution=distribution,
            log_prob=distribution.log_prob(batch.action),
            value=agent.critic.apply(state.critic, batch.obs),
        )
        return improve(agent, state, adam, key, batch)

    parameters, metrics = [], []
    for key, batch in zip(keys, found, strict=True):
        state, measured = update(state, key, batch)
        parameters.append(torch_names(state))
        metrics.append(measured)
    return parameters, metrics


def sb3_updates(tmp_path, algo, config, settings, weights, found, keys):
    """The same by Stable-Baselines3, in an environment of its own."""
    spec = importlib.util.spec_from_file_location("venvs", SCRIPT.parents[2] / "benchmarks" / "venvs.py")
    venvs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(venvs)
    about = {
        "algo": algo,
        "env": config.env,
        "updates": UPDATES,
        "hidden_sizes": config.hidden_sizes,
        "adam_eps": 1e-5 if config.is_joint else 2e-5,
        "weights": list(weights),
        "settings": {"learning_rate": config.learning_rate, **settings},
    }
    arrays = {f"weights/{name}": x for name, x in weights.items()}
    for i, (batch, key) in enumerate(zip(found, keys, strict=True)):
        arrays |= {f"{i}/{name}": getattr(batch, name) for name in ("obs", "action", "advantage", "value_target")}
        arrays[f"{i}/orders"] = orders(config, key)
    np.savez(tmp_path / "job.npz", about=json.dumps(about), **arrays)
    python = venvs.interpreter(SCRIPT, venvs.default_root(), cuda=False)
    command = [python, SCRIPT, tmp_path / "job.npz", tmp_path / "result.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = np.load(tmp_path / "result.npz")
    return [{name: result[f"{i}/{name}"] for name in weights} for i in range(UPDATES)]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo", list(CASES))
def test_three_updates_are_stable_baselines3s(algo, env, tmp_path):
    config, settings = CASES[algo]
    config = config.replace(env=env, reward_scale=1.0 if env == "CartPole-v1" else 0.001)  # beside the policy's loss
    if algo == "trpo":  # so that no conjugate gradient stops early: their tolerances differ
        damping = 0.001 if env == "CartPole-v1" else 0.1
        config, settings = (
            config.replace(algo=config.algo.replace(damping=damping)),
            {**settings, "cg_damping": damping},
        )
    state, found = batches(config)
    keys = jax.random.split(jax.random.key(2), UPDATES)
    theirs = sb3_updates(tmp_path, algo.split()[0], config, settings, torch_names(state), found, keys)
    with jax.enable_x64(True):
        ours, metrics = our_updates(config, state, found, keys)
    if algo == "trpo":
        assert [int(x["accepted"]) for x in metrics] == [1, 1, 1]
        assert [int(x["backtracks"]) for x in metrics] == ([0, 1, 0] if env == "CartPole-v1" else [0, 0, 0])
    before = torch_names(state)
    for mine, other in zip(ours, theirs, strict=True):
        for name, x in mine.items():
            assert x.dtype == other[name].dtype == np.float64
            np.testing.assert_allclose(x, other[name], rtol=0, atol=1e-6, err_msg=name)
            assert np.abs(x - before[name]).max() > 1e-5, name  # it moved
        before = mine
