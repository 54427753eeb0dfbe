"""Three whole updates on one batch, against gradients and Adam written by hand in NumPy, float64: to 1e-6.

For PPO-penalty, dual clip, `target_kl` and a shared torso, which no other library has as we do; what some other has is
in test_parity.py. The order of minibatches is taken from us.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity import doubles, orders

from purejaxppo import PPO, Config, PPOPenalty, init
from purejaxppo.agent import Agent
from purejaxppo.improvement import improve_apart, improve_jointly
from purejaxppo.optimize.minibatch import MinibatchAdam
from purejaxppo.types import Batch

SAMPLES, UPDATES = 64, 3
COMMON = {
    "env": "CartPole-v1",
    "num_envs": 1,
    "num_steps": SAMPLES,
    "total_steps": UPDATES * SAMPLES,
    "hidden_sizes": (8, 8),
    "num_epochs": 3,
    "num_minibatches": 4,
    "learning_rate": 1e-2,
    "anneal_learning_rate": False,
    "max_grad_norm": 0.5,
    "value_clip_eps": 0.1,
}
CASES = {
    "penalty": (PPOPenalty(kl_coef=2.0, kl_target=0.02, entropy_coef=0.01), {}),
    "dual clip": (PPO(dual_clip=1.1), {}),
    "target_kl": (PPO(target_kl=2e-3, normalize_advantages="batch"), {}),
    "shared torso": (PPO(), {"shared_torso": True, "value_coef": 0.7}),
}


def standardized(x):
    return (x - x.mean()) / (x.std() + 1e-8)


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Network:
    """Two tanh layers and some heads: one for the policy, one for the critic, or both where they share the torso."""

    def __init__(self, params, num_heads):
        torso = params["params"]["Torso_0"]
        layers = [torso["Dense_0"], torso["Dense_1"], *(params["params"][f"Dense_{i}"] for i in range(num_heads))]
        self.weights = [np.array(x) for layer in layers for x in (layer["kernel"], layer["bias"])]
        self.moments, self.steps = [[np.zeros_like(x), np.zeros_like(x)] for x in self.weights], 0

    def outputs(self, obs):
        w1, b1, w2, b2, *heads = self.weights
        self.x = [obs, np.tanh(obs @ w1 + b1)]
        self.x.append(np.tanh(self.x[1] @ w2 + b2))
        return [self.x[2] @ w + b for w, b in zip(heads[::2], heads[1::2], strict=True)]

    def gradient(self, of_outputs):
        """Of what has these derivatives in the last outputs."""
        of_heads = [x for g in of_outputs for x in (self.x[2].T @ g, g.sum(0))]
        g = sum(g @ w.T for g, w in zip(of_outputs, self.weights[4::2], strict=True)) * (1 - self.x[2] ** 2)
        second = [self.x[1].T @ g, g.sum(0)]
        g = g @ self.weights[2].T * (1 - self.x[1] ** 2)
        return [self.x[0].T @ g, g.sum(0), *second, *of_heads]

    def adam(self, gradient):
        """Kingma and Ba's algorithm 1, after the gradient is clipped by its norm."""
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        self.steps += 1
        for w, g, moments in zip(self.weights, gradient, self.moments, strict=True):
            clipped = g * min(1.0, COMMON["max_grad_norm"] / norm)
            moments[0] += 0.1 * (clipped - moments[0])
            moments[1] += 0.001 * (clipped**2 - moments[1])
            first, second = moments[0] / (1 - 0.9**self.steps), moments[1] / (1 - 0.999**self.steps)
            w[...] = w - COMMON["learning_rate"] * first / (np.sqrt(second) + 1e-5)


def of_logits(algo, beta, logits, batch, old):
    """Derivatives of the policy's loss, a mean over samples, in the logits; and the mean KL(π_old ‖ π)."""
    n, new = len(logits), log_softmax(logits)
    p, row, advantage = np.exp(new), np.arange(len(logits)), batch["advantage"]
    ratio = np.exp(new[row, batch["action"]] - old[row, batch["action"]])
    slope = ratio * advantage  # of ratio · A in log π
    if isinstance(algo, PPO):
        clipped = np.clip(ratio, 1 - algo.clip_eps, 1 + algo.clip_eps) * advantage
        slope = np.where(ratio * advantage <= clipped, slope, 0.0)  # the lesser of the two moves
        slope = np.where((advantage < 0) & (ratio > algo.dual_clip), 0.0, slope)
    entropy = -(p * new).sum(1, keepdims=True)
    of_log_prob = np.eye(2)[batch["action"]] - p
    g = -slope[:, None] * of_log_prob + algo.entropy_coef * p * (new + entropy) + beta * (p - np.exp(old))
    return g / n, (np.exp(old) * (old - new)).sum(1).mean()


def of_values(values, batch, old):
    """Derivatives of ½ mean max((V - target)², (V_clipped - target)²) in V."""
    target, eps = batch["value_target"], COMMON["value_clip_eps"]
    clipped = old + np.clip(values - old, -eps, eps)
    moves = (np.abs(values - old) < eps) | ((values - target) ** 2 > (clipped - target) ** 2)
    return (np.where(moves, values - target, 0.0) / len(values))[:, None]


def by_hand(algo, config, state, batch, keys):
    """The weights after each update, β before it, and how many of its steps moved the policy."""
    networks = [Network(state.policy, 2)] if config.shared_torso else [Network(state.policy, 1)]
    networks += [] if config.shared_torso else [Network(state.critic, 1)]
    policy, critic = networks[0], networks[-1]
    beta, found = getattr(algo, "kl_coef", 0.0), []
    for key in keys:
        old, stopped, moved = log_softmax(policy.outputs(batch["obs"])[0]), False, 0
        old_values = critic.outputs(batch["obs"])[-1][:, 0]
        for order in orders(config, key):
            for part in order.reshape(config.num_minibatches, -1):
                mini = {name: x[part] for name, x in batch.items()}
                whole = algo.normalize_advantages == "batch"
                mini["advantage"] = standardized(batch["advantage"])[part] if whole else standardized(mini["advantage"])
                outputs = policy.outputs(mini["obs"])
                of_policy, kl = of_logits(algo, beta, outputs[0], mini, old[part])
                stopped, heads = stopped or kl > getattr(algo, "target_kl", np.inf), [of_policy]
                if config.shared_torso:
                    heads.append(config.value_coef * of_values(outputs[1][:, 0], mini, old_values[part]))
                if not stopped:
                    policy.adam(policy.gradient(heads))
                    moved += 1
                if not config.shared_torso:
                    values = critic.outputs(mini["obs"])[0][:, 0]
                    critic.adam(critic.gradient([of_values(values, mini, old_values[part])]))
        found.append(([x.copy() for network in networks for x in network.weights], beta, moved))
        if isinstance(algo, PPOPenalty):
            kl = (np.exp(old) * (old - log_softmax(policy.outputs(batch["obs"])[0]))).sum(1).mean()
            beta *= 0.5 if kl < algo.kl_target / 1.5 else 2.0 if kl > algo.kl_target * 1.5 else 1.0
    return found


def by_us(config, state, batch, keys):
    """The same of the package's own."""
    agent = Agent.of(config)
    adam = MinibatchAdam(config.learning_rate, config.max_grad_norm, config.num_epochs, config.num_minibatches)
    improve = improve_jointly if config.is_joint else improve_apart

    @jax.jit
    def update(state, key, batch):
        distribution = agent.policy.apply(state.policy, batch["obs"])
        critic = agent.critic_params(state.policy, state.critic)
        old = {"value": agent.critic.apply(critic, batch["obs"]), "log_prob": distribution.log_prob(batch["action"])}
        return improve(agent, state, adam, key, Batch(**batch, **old, distribution=distribution))

    found = []
    for key in keys:
        state, metrics = update(state, key, batch)
        parts = [(state.policy, 2)] if config.shared_torso else [(state.policy, 1), (state.critic, 1)]
        weights = [x for params, heads in parts for x in Network(params, heads).weights]
        found.append((weights, float(metrics.get("kl_coef", 0.0))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_three_updates_are_those_made_by_hand(name):
    algo, settings = CASES[name]
    config = Config(algo=algo, **COMMON, **settings)
    state, rng = doubles(init(config, jax.random.key(0))), np.random.default_rng(1)
    batch = {
        "obs": rng.normal(size=(SAMPLES, 4)),
        "action": rng.integers(2, size=SAMPLES),
        "advantage": rng.normal(size=SAMPLES),
        "value_target": rng.normal(size=SAMPLES),
    }
    keys = jax.random.split(jax.random.key(2), UPDATES)
    with jax.enable_x64(True):
        ours = by_us(config, jax.tree.map(jnp.asarray, state), batch, keys)
    expected = by_hand(algo, config, state, batch, keys)
    for (weights, beta), (others, other_beta, _) in zip(ours, expected, strict=True):
        assert beta == other_beta
        for x, y in zip(weights, others, strict=True):
            assert x.dtype == y.dtype == np.float64
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
    # and what is tested took place
    steps = config.num_epochs * config.num_minibatches
    assert np.abs(ours[0][0][0] - ours[2][0][0]).max() > 1e-3
    assert (len({beta for _, beta in ours}) > 1) == (name == "penalty")
    assert all(0 < moved < steps if name == "target_kl" else moved == steps for *_, moved in expected)
    if name == "dual clip":
        single = by_hand(PPO(), config, state, batch, keys)
        assert np.abs(single[2][0][0] - expected[2][0][0]).max() > 1e-4
