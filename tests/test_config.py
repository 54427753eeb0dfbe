"""`Config`: every setting does something, numbers may be traced, defaults are the published, nonsense is refused."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from environments import RandomStart, StepCounter, Walk
from flax import linen as nn
from flax import struct
from support import arrays, largest_difference, quick_jit

from purejaxppo import (
    A2C,
    ALGORITHMS,
    CEM,
    CMAES,
    NPG,
    PPO,
    REINFORCE,
    TRPO,
    A2CTrustRegion,
    Config,
    PPOPenalty,
    init,
    make_train,
    update_step,
)
from purejaxppo.config import DEFAULTS
from purejaxppo.errors import UsageError
from purejaxppo.spaces import Box, Discrete, MultiBinary, MultiDiscrete

KEY = jax.random.key(0)
SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 2 * 32, "hidden_sizes": (8,), "num_minibatches": 1}
UPDATES = {"learning_rate": 0.02, "gae_lambda": 0.9, "num_epochs": 2, "anneal_learning_rate": False}

NETWORK = (  # what `init` depends on
    *("env", "num_envs", "hidden_sizes", "layer_norm", "policy_network", "critic_network", "policy_obs", "critic_obs"),
    *("action_distribution", "recurrent", "recurrent_size", "shared_torso", "joint_update", "frame_stack"),
    *("desired_kl", "optimizer", "critic_hidden_sizes", "initialization", "log_std_init", "noise_steps"),
    "convolutions",
)


# Which a CPU does not look at: see test_precision.py and test_kernels.py
OF_ACCELERATORS = {"precision", "step_precision", "kernels"}
# In more detail, in test_recurrent.py, test_action_distributions.py, test_observations.py, test_pitfalls.py,
# test_gsde.py, test_other_libraries_settings.py, test_wrappers.py, test_first_order_switches.py, test_networks.py,
# test_identities.py, test_train.py, test_tuning.py, test_evaluate.py
TESTED_ELSEWHERE = {
    *("num_envs", "num_steps", "total_steps", "advantage_estimator", "value_target", "value_coef", "stages"),
    *("eval_interval", "eval_greedy", "normalize_observations", "normalize_rewards"),
    *("recurrent", "recurrent_size", "action_distribution", "policy_obs", "critic_obs", "eval_episodes"),
    *("optimizer", "optimizer_eps", "weight_decay", "minibatch_size", "critic_hidden_sizes", "initialization"),
    *("log_std_init", "noise_steps", "frame_stack", "action_repeat", "desired_kl", "anneal", "policy_network"),
    *("convolutions", "truncation_as_termination", "shared_torso", "joint_update", "critic_network", "eval_max_steps"),
}
OWN_TESTED_ELSEWHERE = {  # in test_trust_region.py and test_surrogates.py
    *((NPG, "fisher_subsample"), (TRPO, "region"), (PPO, "normalize_advantages"), (PPOPenalty, "normalize_advantages"))
}


class Quadratic(nn.Module):
    """A critic of one's own."""

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(1)(obs**2)[..., 0]


class Entries(Walk):
    """The walk, with position and time as entries of a dictionary."""

    @property
    def observation_space(self):
        return {"x": Box(-jnp.inf, jnp.inf, ()), "steps": Box(-jnp.inf, jnp.inf, (1,))}

    def observe(self, state):
        return {"x": state.x, "steps": state.steps.astype(jnp.float32)[None]}


class Picture(Walk):
    """The walk, with the position as an image."""

    @property
    def shape(self):
        return 3, 3, 1

    @property
    def observation_space(self):
        return Box(-jnp.inf, jnp.inf, self.shape)

    def observe(self, state):
        return jnp.full(self.shape, state.x)


# For each field a change that must show in a run of two updates. With a pair of dicts, the first is what else is set.
SHARED = {
    "env": {"env": RandomStart()},
    "algo": {"algo": NPG()},
    "num_envs": {"num_envs": 4},
    "num_steps": {"num_steps": 8},
    "total_steps": ({"anneal_learning_rate": True}, {"total_steps": 3 * 32}),
    "gamma": {"gamma": 0.5},
    "gae_lambda": {"gae_lambda": 0.2},
    "advantage_estimator": {"advantage_estimator": "monte-carlo"},
    "value_target": {"value_target": "td0"},
    "entropy_reward_coef": {"entropy_reward_coef": 0.5},
    "frame_stack": {"frame_stack": 2},
    "action_repeat": {"action_repeat": 2},
    "observation_clip": {"observation_clip": 0.05},
    "reward_scale": {"reward_scale": 3.0},
    "reward_clip": {"reward_clip": 0.05},
    "learning_rate": {"learning_rate": 0.005},
    "anneal_learning_rate": {"anneal_learning_rate": True},
    "anneal": {"anneal": ("entropy_coef",)},
    "stages": {"stages": ("1 learning_rate=0.005",)},
    "desired_kl": {"desired_kl": 1.0},
    "truncation_as_termination": {"truncation_as_termination": True},
    "max_grad_norm": {"max_grad_norm": 1e-4},
    "optimizer": {"optimizer": "rmsprop"},
    "optimizer_eps": {"optimizer_eps": 0.1},
    "weight_decay": {"weight_decay": 0.5},
    "minibatch_size": {"minibatch_size": 16},
    "num_epochs": {"num_epochs": 3},
    "num_minibatches": {"num_minibatches": 2},
    "value_clip_eps": {"value_clip_eps": 1e-3},
    "hidden_sizes": {"hidden_sizes": (8, 8)},
    "critic_hidden_sizes": {"critic_hidden_sizes": (4,)},
    "initialization": {"initialization": "pytorch"},
    "activation": {"activation": "relu"},
    "convolutions": ({"env": Picture()}, {"convolutions": False}),
    "layer_norm": {"layer_norm": True},
    "shared_torso": {"shared_torso": True},
    "joint_update": {"joint_update": True},
    "value_coef": ({"shared_torso": True}, {"value_coef": 2.0}),
    "recurrent": {"recurrent": "lstm"},
    "recurrent_size": ({"recurrent": "gru"}, {"recurrent_size": 8}),
    "policy_network": {"policy_network": nn.Dense(2)},
    "critic_network": {"critic_network": Quadratic()},
    "policy_obs": ({"env": Entries()}, {"policy_obs": ("x",)}),
    "critic_obs": ({"env": Entries()}, {"critic_obs": ("x",)}),
    "action_distribution": ({"env": Walk(continuous=True)}, {"action_distribution": "beta"}),
    "noise_steps": ({"env": Walk(continuous=True), "action_distribution": "gsde"}, {"noise_steps": 1}),
    "log_std_init": ({"env": Walk(continuous=True)}, {"log_std_init": -1.0}),
    "normalize_observations": {"normalize_observations": True},
    "normalize_rewards": {"normalize_rewards": True},
    "eval_interval": ({"eval_episodes": 3}, {"eval_interval": 2}),
    "eval_episodes": ({"eval_interval": 2, "eval_episodes": 3}, {"eval_episodes": 5}),
    "eval_greedy": ({"eval_interval": 2, "eval_episodes": 3}, {"eval_greedy": False}),
    "eval_max_steps": ({"eval_interval": 2, "eval_episodes": 3}, {"eval_max_steps": 2}),
}
OWN = {
    REINFORCE: {"baseline": False, "normalize_advantages": True, "entropy_coef": 0.5},
    A2C: {"entropy_coef": 0.5, "normalize_advantages": True},
    A2CTrustRegion: {"entropy_coef": 0.5, "normalize_advantages": True, "kl_slope": 1e-6, "average_decay": 0.5},
    NPG: {"max_kl": 0.1, "damping": 1.0, "cg_iterations": 1, "fisher_subsample": 2, "normalize_advantages": False},
    TRPO: {
        "max_kl": 0.5,
        "damping": 1.0,
        "cg_iterations": 1,
        "backtrack_factor": 0.5,
        "max_backtracks": 0,
        "fisher_subsample": 2,
        "region": "ball",
        "normalize_advantages": False,
    },
    PPO: {
        "clip_eps": 0.01,
        "dual_clip": 1.01,
        "entropy_coef": 0.5,
        "target_kl": 1e-6,
        "normalize_advantages": ({"num_minibatches": 2}, "batch"),
    },
    PPOPenalty: {
        "kl_coef": 50.0,
        "adaptive": False,
        "kl_target": 10.0,
        "entropy_coef": 0.5,
        "normalize_advantages": ({"num_minibatches": 2}, "batch"),
    },
    CEM: {
        "elite_fraction": 0.5,
        "initial_std": 2.0,
        "extra_std": 2.0,
        "extra_decay": 1.0,
        "envs_per_member": ({"num_envs": 12}, 3),
    },
    CMAES: {"initial_sigma": 1.0, "covariance": "diagonal", "envs_per_member": ({"num_envs": 12}, 3)},
}
BASE = (
    {  # where each option matters: TRPO has to backtrack, for instance
        algorithm: Config(env=Walk(), algo=algorithm(), **SMALL, **UPDATES) for algorithm in OWN
    }
    | {algorithm: Config(env=Walk(), algo=algorithm(), **SMALL | {"num_envs": 12}) for algorithm in (CEM, CMAES)}
    | {TRPO: Config(env=Walk(), algo=TRPO(max_kl=3.0, damping=1e-3), **SMALL, **UPDATES)}
)

traces = []


@quick_jit
def begin(config, key):
    """`init`, with the config's numbers traced."""
    traces.append(config)
    return init(config, key)


@quick_jit
def update(config, state):
    """`update_step`, one compiled program for all values of a config's numbers."""
    traces.append(config)
    return update_step(config, state)


@quick_jit
def train(config, key):
    """The whole of training, likewise."""
    traces.append(config)
    return make_train(config)(key)


def outcome(config):
    """Everything that a run of two updates gives and that its settings may change."""
    if config.eval_interval:
        state, metrics = train(config, KEY)
    else:
        own = [f for f in dataclasses.fields(config.algo) if is_number(f) or f.name == "covariance"]
        numbers = {f.name: getattr(config.algo, f.name) for f in own}
        parts = {name: getattr(config, name) for name in NETWORK}
        state = begin(Config(algo=type(config.algo)(**numbers), **parts), KEY)  # nothing else matters to it
        state, first = update(config, state)
        state, second = update(config, state)
        metrics = jax.tree.map(lambda *x: jnp.stack(x), first, second)
    assert all(np.all(np.isfinite(x)) for x in arrays((state, metrics)))
    return state.policy, state.critic, state.algorithm, metrics


def shapes(config):
    """Structure, shapes and types of what a run begins with."""
    state = jax.eval_shape(functools.partial(init, config), KEY)
    return str((state.policy, state.critic, state.algorithm))


@functools.cache
def program(config):
    """All of training, as it is traced."""
    return str(jax.make_jaxpr(make_train(config))(KEY))


def is_number(field):
    """Whether values of the field are traced."""
    return field.metadata.get("type") is float


def all_fields(results):
    """(class, field) of every setting, from the classes themselves; of numbers only where `results` are compared."""
    elsewhere = {(Config, name) for name in TESTED_ELSEWHERE} | OWN_TESTED_ELSEWHERE
    return [
        pytest.param(
            owner,
            field,
            id=f"{owner.__name__}.{field.name}",
            marks=pytest.mark.slow if (owner, field.name) in elsewhere or (results and not is_number(field)) else (),
        )
        for owner in (Config, *ALGORITHMS.values())
        for field in dataclasses.fields(owner)
        if field.name not in OF_ACCELERATORS and (results or not is_number(field))
    ]


def base_and_changed(owner, field):
    """Two configs that differ in this field, and where it matters."""
    changes = SHARED if owner is Config else OWN[owner]
    assert field.name in changes, f"no change of {owner.__name__}.{field.name} is listed: add one that must show"
    base, change = BASE[A2C if owner is Config else owner], changes[field.name]
    if isinstance(change, tuple):
        base, change = base.replace(**change[0]), change[1]
    if owner is not Config:
        change = {"algo": base.algo.replace(**{field.name: change})}
    return base, base.replace(**change)


@pytest.mark.parametrize(("owner", "field"), all_fields(results=False))
def test_every_choice_changes_the_program(owner, field):
    """Shapes or what is traced; that results change, too, is below."""
    base, changed = base_and_changed(owner, field)
    assert shapes(changed) != shapes(base) or program(changed) != program(base)


@pytest.mark.parametrize(("owner", "field"), all_fields(results=True))
@pytest.mark.thorough
def test_every_setting_does_something(owner, field):
    """Another value of it changes parameters, metrics or shapes; that of a number without another compilation."""
    base, changed = base_and_changed(owner, field)
    if shapes(changed) != shapes(base):
        return  # to compile it would show no more
    before = outcome(base)
    compiled = len(traces)
    assert largest_difference(outcome(changed), before) > 1e-4
    assert len(traces) == compiled or not is_number(field)


def test_list_of_changes_names_no_stranger():
    """Every entry of the lists above is a setting that exists."""
    assert set(SHARED) == {field.name for field in dataclasses.fields(Config)} - OF_ACCELERATORS
    for algorithm, changes in OWN.items():
        assert set(changes) == {field.name for field in dataclasses.fields(algorithm)} - OF_ACCELERATORS


@pytest.mark.parametrize(
    ("algo", "field", "values"),
    [
        pytest.param(TRPO, "max_kl", [0.001, 0.01, 0.1], id="max_kl"),
        pytest.param(PPO, "learning_rate", [1e-4, 1e-3, 1e-2], id="learning_rate", marks=pytest.mark.thorough),
    ],
)
def test_vmap_over_a_hyperparameter_gives_what_lone_runs_give(algo, field, values):
    """One program for three values at once, and one for each alone: the same parameters after the first update."""
    config = BASE[algo]
    state = begin(config, KEY)

    def with_value(value):
        if field == "learning_rate":
            return config.replace(learning_rate=value)
        return config.replace(algo=config.algo.replace(**{field: value}))

    together = quick_jit(jax.vmap(lambda value: update_step(with_value(value), state)[0].policy))(jnp.asarray(values))
    lone = [update(with_value(value), state)[0].policy for value in values]
    for i, policy in enumerate(lone):
        assert largest_difference(jax.tree.map(lambda x, i=i: x[i], together), policy) <= 1e-5
    assert largest_difference(lone[0], lone[1]) > 1e-4
    assert largest_difference(lone[1], lone[2]) > 1e-4


def test_training_is_traced_once_for_all_numbers():
    """Other numbers, of the config or of its algorithm, never compile `make_train` again."""
    counted = quick_jit(chex.assert_max_traces(lambda config, key: make_train(config)(key), n=1))
    config = BASE[A2C]
    finals = [
        counted(config, KEY),
        counted(config.replace(gamma=0.5), KEY),
        counted(config.replace(learning_rate=1e-3, max_grad_norm=math.inf), KEY),
        counted(config.replace(algo=A2C(entropy_coef=0.3)), jax.random.key(1)),
    ]
    assert min(largest_difference(final, finals[0]) for final in finals[1:]) > 1e-4


def test_published_defaults_fill_what_is_left_open():
    """Each algorithm brings its published settings, the common ones fill the rest, and explicit values win."""
    for algorithm in ALGORITHMS.values():
        config = Config(algo=algorithm())
        for name, value in {**DEFAULTS, **algorithm.published}.items():
            assert getattr(config, name) == value, name
        unset = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None}
        assert unset == {"policy_network", "critic_network", "critic_hidden_sizes", "minibatch_size"}
        explicit = Config(algo=algorithm(), num_envs=3, learning_rate=0.5, gae_lambda=0.1, value_target="td0")
        assert (explicit.num_envs, explicit.learning_rate) == (3, 0.5)
        assert (explicit.gae_lambda, explicit.value_target) == (0.1, "td0")
        config.check()
    trpo, ppo = Config(algo=TRPO()), Config()
    assert (trpo.num_envs * trpo.num_steps, trpo.anneal_learning_rate, trpo.value_clip_eps) == (2048, False, math.inf)
    assert (ppo.num_envs * ppo.num_steps, ppo.anneal_learning_rate, ppo.value_clip_eps) == (512, True, 0.2)


class Lazy(struct.PyTreeNode):
    """An algorithm that says nothing of itself."""

    def init(self, params):
        return ()

    def update(self, key, policy, params, state, batch, optimizer):
        return params, state, {"policy_loss": jnp.zeros(()), "grad_norm": jnp.zeros(())}


def test_an_algorithm_need_not_publish_settings():
    config = Config(algo=Lazy(), hidden_sizes=(8,))
    config.check()
    assert (config.num_envs, config.num_steps, config.num_epochs, config.num_minibatches) == (4, 128, 4, 4)
    jax.eval_shape(make_train(config), KEY)


def test_steps_are_rounded_up_to_whole_updates():
    """`env_steps` is the least whole number of updates' steps that is at least `total_steps`."""
    for total, updates in ((1, 1), (32, 1), (33, 2), (64, 2)):
        config = Config(num_envs=2, num_steps=16, total_steps=total)
        assert (config.num_updates, config.env_steps) == (updates, 32 * updates)


@dataclasses.dataclass(frozen=True)
class Spaces(StepCounter):
    """An environment with any spaces at all."""

    observation_space: object = Box(-1.0, 1.0, (1,))
    action_space: object = Discrete(2)


MASK = MultiBinary(2)
MASKED = {"x": Box(-1.0, 1.0, (1,)), "action_mask": MASK}
UNBOUNDED = Spaces(action_space=Box(-jnp.inf, jnp.inf, (1,)))


class TwoRows(Picture):
    """Images too small for a filter of 3 × 3."""

    @property
    def shape(self):
        return 2, 4, 1


class Branching(StepCounter):
    """An environment that looks at a value while it is traced."""

    def step(self, key, state, action):
        return super().step(key, state, action if action > 0 else -action)


class FourResults(StepCounter):
    """An environment that does not tell truncation from termination."""

    def step(self, key, state, action):
        return super().step(key, state, action)[:4]


class WholeReward(StepCounter):
    """An environment whose reward is an integer."""

    def step(self, key, state, action):
        state, obs, _, terminated, truncated = super().step(key, state, action)
        return state, obs, jnp.ones((), jnp.int32), terminated, truncated


BAD = [  # (settings, what the message must contain)
    ({"env": "CartPole-v2"}, ["env = 'CartPole-v2'", "CartPole-v1"]),
    ({"env": "cartpole"}, ["env = 'cartpole'", "CartPole-v1"]),
    ({"env": "gymnax/Breakout"}, ["env = 'gymnax/Breakout'", "Breakout-MinAtar"]),
    ({"env": "no_such_module:Env"}, ["env = 'no_such_module:Env'"]),
    ({"env": "environments:NoSuchClass"}, ["env = 'environments:NoSuchClass'"]),
    ({"env": "fractions:Fraction"}, ["env = 'fractions:Fraction'", "reset"]),
    ({"env": 5}, ["env = 5"]),
    ({"env": None}, ["env = None"]),
    ({"env": Spaces(observation_space=Discrete(3))}, ["float32[1]", "Discrete(n=3)"]),
    ({"env": Spaces(observation_space={"x": MASK})}, ["observation_space['x'] = MultiBinary(n=2)"]),
    ({"env": Spaces(observation_space={"x": Box(-1.0, 1.0, (1,))})}, ["env = Spaces", "['x']"]),
    ({"env": Spaces(observation_space={"action_mask": MASK})}, ["observation_space = ", "nothing to see"]),
    ({"env": Spaces(observation_space=MASKED, action_space=Discrete(3))}, ["action_mask", "MultiBinary(n=3)"]),
    ({"env": Spaces(observation_space=MASKED, action_space=MASK)}, ["action_mask", "MultiBinary(n=2) takes none"]),
    ({"env": Spaces(action_space=MultiDiscrete([2, 2]))}, ["action_space = MultiDiscrete(nvec=[2, 2])"]),
    ({"env": Spaces(action_space=MultiDiscrete((2, 0)))}, ["action_space = MultiDiscrete(nvec=(2, 0))"]),
    ({"env": Walk(), "action_distribution": "beta"}, ["action_distribution = 'beta'", "Discrete(n=2)"]),
    ({"env": UNBOUNDED, "action_distribution": "beta"}, ["action_distribution = 'beta'", "inf"]),
    ({"env": UNBOUNDED, "action_distribution": "tanh-gaussian"}, ["action_distribution = 'tanh-gaussian'", "inf"]),
    (
        {"env": Spaces(action_space=Box(*(x * float(np.finfo(np.float32).max) for x in (-1, 1)), (1,)))}
        | {"action_distribution": "beta"},
        ["needs bounds", "3.40282e+38"],
    ),
    ({"action_distribution": "cauchy"}, ["action_distribution = 'cauchy'", "tanh-gaussian"]),
    ({"env": Entries(), "policy_obs": ("y",)}, ["policy_obs = ('y',)", "steps, x"]),
    ({"env": Entries(), "critic_obs": "x"}, ["critic_obs = 'x'", "steps, x"]),
    ({"policy_obs": ("x",)}, ["policy_obs = ('x',)", "no dictionary"]),
    ({"layer_norm": 1}, ["layer_norm = 1"]),
    ({"convolutions": False}, ["convolutions = False", "CartPole-v1", "sees an image", "leave it at True"]),
    ({"policy_network": "MLP"}, ["policy_network = 'MLP'", "Module"]),
    (
        {"env": Walk(), "recurrent": "gru", "policy_network": nn.Dense(2), "critic_network": Quadratic()},
        ["recurrent = 'gru'"],
    ),
    ({"optimizer": optax.inject_hyperparams(optax.adam)}, ["keeps a learning rate of its own"]),
    ({"optimizer": optax.lion, "stages": ("0 weight_decay=0.5",)}, ["weight_decay", "no number that can change"]),
    ({"num_envs": 1, "num_steps": 1, "num_minibatches": 1, "algo": TRPO()}, ["standardised advantage is 0"]),
    ({"policy_network": nn.Dense}, ["policy_network = <class", "instance"]),
    ({"policy_network": nn.Dense(3)}, ["policy_network = Dense", "(3,)", "(2,)"]),
    ({"critic_network": nn.Dense(1)}, ["critic_network = Dense", "(1,)", "()"]),
    ({"env": Entries(), "critic_network": Quadratic()}, ["critic_network = Quadratic", "fails"]),
    ({"env": Spaces(observation_space=Box(0.0, 1.0, (2, 2, 2, 2)))}, ["observation_space = Box", "(2, 2, 2, 2)"]),
    ({"env": Spaces(action_space=(Discrete(2), Discrete(2)))}, ["action_space = (Discrete(n=2), Discrete(n=2))"]),
    ({"env": TwoRows()}, ["(2, 4, 1)", "smaller than 3 × 3", "convolutions = False"]),
    ({"env": Spaces(observation_space=Box(-1.0, 1.0, (2,)))}, ["env = Spaces", "(2,)"]),
    ({"env": StepCounter}, ["env = <class", "StepCounter()"]),
    ({"env": Branching()}, ["env = Branching"]),
    ({"env": FourResults()}, ["env = FourResults", "truncated"]),
    ({"env": WholeReward()}, ["env = WholeReward", "reward", "int32"]),
    ({"algo": "ppo"}, ["algo = 'ppo'", "PPO"]),
    ({"algo": None}, ["algo = None"]),
    ({"algo": PPO}, ["algo = <class"]),
    ({"num_envs": 0}, ["num_envs = 0", "[1, 1e9]"]),
    ({"num_envs": "4"}, ["num_envs = '4'"]),
    ({"num_envs": 2.5}, ["num_envs = 2.5"]),
    ({"num_envs": jnp.asarray(4)}, ["num_envs = Array(4"]),
    ({"num_steps": -8}, ["num_steps = -8"]),
    ({"num_steps": True}, ["num_steps = True"]),
    ({"total_steps": 0}, ["total_steps = 0"]),
    ({"total_steps": 1e6}, ["total_steps = 1000000.0"]),
    ({"num_minibatches": 3}, ["num_minibatches = 3", "512", "2, 4"]),
    ({"num_minibatches": 512}, ["num_minibatches = 512"]),
    ({"num_epochs": 0}, ["num_epochs = 0"]),
    ({"gamma": 1.5}, ["gamma = 1.5", "[0, 1]", "0.99"]),
    ({"gamma": -0.1}, ["gamma = -0.1"]),
    (
        {"learning_rate": optax.constant_schedule(0.1)},
        ["learning_rate = <function", "anneal_learning_rate, anneal and stages"],
    ),
    ({"gamma": math.nan}, ["gamma = nan"]),
    ({"gamma": True}, ["gamma = True"]),
    ({"gae_lambda": "0.9"}, ["gae_lambda = '0.9'"]),
    ({"learning_rate": 0}, ["learning_rate = 0"]),
    ({"learning_rate": math.inf}, ["learning_rate = inf"]),
    ({"max_grad_norm": 0.0}, ["max_grad_norm = 0.0", "(0, inf]"]),
    ({"value_clip_eps": -1.0}, ["value_clip_eps = -1.0"]),
    ({"entropy_reward_coef": -0.1}, ["entropy_reward_coef = -0.1"]),
    ({"advantage_estimator": "vtrace"}, ["advantage_estimator = 'vtrace'", "gae, monte-carlo"]),
    ({"value_target": "td1"}, ["value_target = 'td1'", "td0"]),
    ({"activation": "mish"}, ["activation = 'mish'", "tanh"]),
    ({"hidden_sizes": (64, 0)}, ["hidden_sizes = ", "0"]),
    ({"hidden_sizes": 64}, ["hidden_sizes = 64"]),
    ({"hidden_sizes": [64, "x"]}, ["hidden_sizes = 'x'"]),
    ({"normalize_observations": 1}, ["normalize_observations = 1", "True or False"]),
    ({"normalize_rewards": "no"}, ["normalize_rewards = 'no'"]),
    ({"anneal_learning_rate": "no"}, ["anneal_learning_rate = 'no'", "True or False"]),
    ({"eval_interval": -1}, ["eval_interval = -1"]),
    ({"eval_episodes": 0}, ["eval_episodes = 0"]),
    ({"eval_greedy": None}, ["eval_greedy = None"]),
    ({"algo": PPO(clip_eps=0.0)}, ["clip_eps = 0.0"]),
    ({"algo": PPO(dual_clip=1.0)}, ["dual_clip = 1.0", "(1, inf]"]),
    ({"algo": PPO(normalize_advantages=True)}, ["normalize_advantages = True", "minibatch, batch, none"]),
    ({"algo": PPOPenalty(adaptive="yes")}, ["adaptive = 'yes'"]),
    ({"algo": TRPO(max_kl=-0.01)}, ["max_kl = -0.01"]),
    ({"algo": PPO(), "anneal": ("clip",)}, ["anneal = ('clip',)", "PPO", "clip_eps"]),
    ({"algo": PPO(dual_clip=3.0), "anneal": ("dual_clip",)}, ["anneal = ('dual_clip',)", "PPO: clip_eps"]),  # 1 or more
    ({"algo": PPOPenalty(), "anneal": ("kl_coef",)}, ["anneal = ('kl_coef',)", "PPOPenalty: kl_target, entropy_coef"]),
    ({"algo": TRPO(), "anneal": ("max_backtracks",)}, ["max_backtracks", "TRPO", "max_kl, damping, backtrack_factor"]),
    ({"algo": TRPO(), "desired_kl": 0.01}, ["desired_kl = 0.01", "first-order", "max_kl"]),
    ({"algo": TRPO(max_kl=None)}, ["max_kl = None"]),
    ({"algo": TRPO(backtrack_factor=1.0)}, ["backtrack_factor = 1.0", "(0, 1)"]),
    ({"algo": TRPO(region="sphere")}, ["region = 'sphere'", "kl, ball"]),
    ({"algo": NPG(cg_iterations=0)}, ["cg_iterations = 0"]),
    ({"algo": NPG(damping=math.nan)}, ["damping = nan"]),
    ({"algo": A2C(normalize_advantages="batch")}, ["normalize_advantages = 'batch'"]),
    ({"algo": REINFORCE(baseline=0)}, ["baseline = 0"]),
]


def name_of(x):
    """Of a test; the same in every process."""
    return None if isinstance(x, list) else re.sub(r" at 0x[0-9a-f]+", "", str(x))[:60]


@pytest.mark.parametrize(("settings", "parts"), BAD, ids=name_of)
def test_nonsense_is_refused_in_one_line(settings, parts):
    """Before anything is traced; the message names the setting, the value and what would do."""
    with pytest.raises(UsageError) as caught:
        make_train(Config(**settings))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_images_of_any_size_are_flattened_where_no_convolutions_are_asked_for():
    Config(env=TwoRows(), convolutions=False).check()


def test_bounds_themselves_are_allowed():
    """The closed ends of the intervals, and inf where it switches something off."""
    Config(gamma=1, gae_lambda=0, max_grad_norm=math.inf, value_clip_eps=math.inf, hidden_sizes=()).check()
    Config(gamma=0.0, algo=PPO(clip_eps=math.inf, dual_clip=math.inf, target_kl=math.inf, entropy_coef=0)).check()
    Config(algo=TRPO(damping=0.0, max_backtracks=0)).check()
    Config(gamma=jnp.asarray([0.9, 0.99]), algo=NPG(max_kl=np.float64(0.1))).check()


def test_a_whole_config_may_be_traced():
    """Of a second-order method, too, whose traced `desired_kl` nobody can see to be inf."""
    config = Config(algo=TRPO(), hidden_sizes=(8,), num_steps=16, num_minibatches=4, total_steps=32)
    _, metrics = jax.eval_shape(lambda config, key: make_train(config)(key), config, jax.random.key(0))
    assert metrics["kl"].shape == (1,)
