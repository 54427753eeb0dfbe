"""Every algorithm learns its probe with every distribution and every kind of observation."""

import jax
import numpy as np
import pytest
from environments import Probe
from support import by_cost, quick_jit

from purejaxppo import A2C, CEM, CMAES, NPG, PPO, REINFORCE, TRPO, A2CTrustRegion, Config, PPOPenalty, make_train
from purejaxppo.evaluation import evaluate
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete

ALGORITHMS = {
    "reinforce": REINFORCE(),
    "a2c": A2C(entropy_coef=0.0),
    "a2c-tr": A2CTrustRegion(entropy_coef=0.0, kl_slope=0.1),
    "npg": NPG(max_kl=0.05),
    "trpo": TRPO(max_kl=0.05),
    "ppo-penalty": PPOPenalty(),
    "ppo": PPO(entropy_coef=0.0),
}
EVOLUTION = {"cem": CEM(), "cma-es": CMAES(covariance="diagonal")}
MASK = (False, True, True, False, False, True, True)
BOX = Probe(Box(-2.0, 1.0, (2,)))
POLICIES = {
    "discrete": Config(env=Probe(Discrete(3), "integer")),
    "masked": Config(env=Probe(Discrete(4), "dict", (False, True, True, True))),
    "multi-discrete": Config(env=Probe(MultiDiscrete((2, 3)))),
    "masked-multi-discrete": Config(env=Probe(MultiDiscrete((3, 4)), "dict", MASK)),
    "multi-binary": Config(env=Probe(MultiBinary(3), "dict")),
    **{kind: Config(env=BOX, action_distribution=kind) for kind in ("gaussian", "gaussian-state-std")},
    **{kind: Config(env=BOX, action_distribution=kind) for kind in ("tanh-gaussian", "beta")},
}
SETTINGS = {"num_envs": 32, "num_steps": 8, "num_epochs": 4, "num_minibatches": 4}
SETTINGS |= {"hidden_sizes": (16,), "anneal_learning_rate": True}
ONE_STEP = {"total_steps": 300 * 256, "learning_rate": 0.03}  # of Adam per rollout, in REINFORCE and A2C
MANY = {"total_steps": 60 * 256, "learning_rate": 0.01}
PAIRS = [(algo, policy) for algo in (*ALGORITHMS, *EVOLUTION) for policy in POLICIES]
EACH = set(zip([*ALGORITHMS, *EVOLUTION], POLICIES, strict=True))  # each policy, and each algorithm, at least once
QUICK = {pair for pair in EACH if pair[0] == "trpo"}


@pytest.mark.parametrize(("algo", "policy"), by_cost(PAIRS, QUICK, EACH))
def test_it_learns_the_probe(algo, policy):
    """Greedy returns near the best, which is 1; a random policy has 0 to ½. A forbidden action would have paid 10."""
    if algo in EVOLUTION:
        kept = {name: getattr(POLICIES[policy], name) for name in ("env", "action_distribution")}
        own = {name: SETTINGS[name] for name in ("num_envs", "num_steps", "hidden_sizes")}
        config = Config(algo=EVOLUTION[algo], total_steps=MANY["total_steps"], **kept, **own)
    else:
        pace = ONE_STEP if algo in ("reinforce", "a2c", "a2c-tr") else MANY
        config = POLICIES[policy].replace(algo=ALGORITHMS[algo], **SETTINGS, **pace)

    @quick_jit
    def run(key):
        state, metrics = make_train(config)(key)
        return metrics["episode_return"], evaluate(config, state, key, 64).returns

    during, after = run(jax.random.key(0))
    assert np.all(np.isfinite(during))
    assert np.max(during) <= 1.0
    assert np.mean(after) > (0.8 if algo in EVOLUTION else 0.9)  # whose search is not over yet
    assert np.mean(after) > during[0] + 0.3
