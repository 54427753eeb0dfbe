"""`Config`: every setting of a run, as a pytree."""

import dataclasses
import math
from typing import Any

from flax import struct

from purejaxppo.algorithms import ALGORITHMS, PPO, hyperparameters
from purejaxppo.algorithms.members import check_members
from purejaxppo.consistency import check_agent, check_mesh, check_minibatches, fixed_numbers
from purejaxppo.envs.base import BaseEnv, adapt
from purejaxppo.envs.check import check_env
from purejaxppo.envs.registry import make_env
from purejaxppo.envs.wrappers import wrapped
from purejaxppo.errors import UsageError
from purejaxppo.fields import check_fields, did_you_mean, meant, number, static, without_address
from purejaxppo.kernels.choice import KERNELS, check_kernels
from purejaxppo.networks.heads import ACTION_DISTRIBUTIONS
from purejaxppo.networks.recurrent import RECURRENT, is_recurrent
from purejaxppo.networks.torso import ACTIVATIONS, INITIALIZATIONS
from purejaxppo.optimize.optimizers import OPTIMIZERS, check_optimizer
from purejaxppo.precision import PRECISIONS, single_precision
from purejaxppo.stages import check_stages
from purejaxppo.types import traits_of

DEFAULTS: dict[str, Any] = {  # for algorithms of the user's own, too, which may publish nothing
    "num_envs": 4,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 3e-4,
    "anneal_learning_rate": False,
    "max_grad_norm": 0.5,
    "gae_lambda": 0.95,
    "value_clip_eps": math.inf,
    "advantage_estimator": "gae",
    "value_target": "lambda-return",
}


class Config(struct.PyTreeNode):
    """What one training run is made of. Numbers are leaves and may be traced; the rest is static.

    A field left at None takes the value that the algorithm's source uses (`algo.published`), else the common one
    (`DEFAULTS`): so `Config(algo=TRPO())` is TRPO as published, and every field of it shows its value. That happens
    when a config is made; `replace(algo=...)` keeps all other fields as they are. Recurrent networks learn from whole
    sequences, one per environment: where `num_minibatches` is left open, it is the greatest common divisor of
    the usual number and `num_envs`.

    `learning_rate`, `max_grad_norm`, `num_epochs` and `num_minibatches` rule every use of Adam: the critic's in all
    methods, and the policy's in the first-order ones (one step per rollout in REINFORCE and A2C, with
    `joint_update` or `shared_torso` the critic's, too).
    """

    env: Any = static("CartPole-v1", "environment: a registered name, or module:Class for one of your own")
    algo: Any = struct.field(default=PPO(), metadata={"help": "the update rule"})
    num_envs: int = static(None, "environments per seed", interval="[1, 1e9]")
    num_steps: int = static(None, "steps per environment between two updates", interval="[1, 1e9]")
    total_steps: int = static(500_000, "environment steps per seed, rounded up to whole updates", interval="[1, 1e15]")

    frame_stack: int = static(1, "observations that are seen at once, the newest last", interval="[1, 1000]")
    action_repeat: int = static(
        1, "times each action is taken, rewards summed; steps are actions", interval="[1, 1000]"
    )
    observation_clip: float = number(math.inf, "(0, inf]", "clip observations to ±this; inf does not")
    reward_scale: float = number(1.0, "(0, inf)", "multiply rewards, for learning alone: reported ones stay")
    reward_clip: float = number(math.inf, "(0, inf]", "then clip them to ±this; inf does not")

    gamma: float = number(0.99, "[0, 1]", "discount")
    gae_lambda: float = number(None, "[0, 1]", "λ of GAE and of the λ-return")
    advantage_estimator: str = static(None, "how advantages are estimated", choices=("gae", "monte-carlo"))
    truncation_as_termination: bool = static(
        False, "a common mistake, to measure what it does: the value of what follows a time limit counts as 0"
    )
    value_target: str = static(None, "what the critic is fitted to", choices=("lambda-return", "td0", "monte-carlo"))
    entropy_reward_coef: float = number(0.0, "[0, inf)", "α of the maximum-entropy objective, rewards r - α log π(a|s)")

    learning_rate: float = number(None, "(0, inf)", "Adam's step size")
    anneal_learning_rate: bool = static(None, "anneal the learning rate linearly towards 0")
    anneal: tuple[str, ...] = static((), "the algorithm's own numbers that are annealed so, such as clip_eps")
    stages: tuple[str, ...] = static((), "numbers that change at a step of each seed: '20480 learning_rate=1e-4', say")
    desired_kl: float = number(
        math.inf,
        "(0, inf]",
        "after an update whose KL was below half of this, multiply the learning rate by 1.5; above twice, divide it",
    )
    max_grad_norm: float = number(None, "(0, inf]", "clip gradients to this global norm; inf does not")
    optimizer: Any = static(
        "adam",
        "what moves policy and critic; from Python, too, a function of the learning rate such as optax.lion",
        choices=OPTIMIZERS,
    )
    optimizer_eps: float = number(1e-5, "(0, inf)", "ε in the denominator of Adam's or RMSprop's step")
    weight_decay: float = number(0.0, "[0, inf)", "λ of decoupled weight decay: with Adam it is AdamW")
    num_epochs: int = static(None, "passes of Adam over each rollout", interval="[1, 1e6]")
    num_minibatches: int = static(None, "minibatches per pass", interval="[1, 1e9]")
    minibatch_size: int | None = static(
        None, "samples per minibatch: decides num_minibatches", interval="[1, 1e9]", usual="by num_minibatches"
    )
    value_clip_eps: float = number(None, "(0, inf]", "clip the critic's change per update, as PPO does; inf does not")

    hidden_sizes: tuple[int, ...] = static((64, 64), "widths of the hidden layers", interval="[1, 1e5]")
    critic_hidden_sizes: tuple[int, ...] | None = static(
        None, "widths of the critic's hidden layers", interval="[1, 1e5]", usual="those of hidden_sizes"
    )
    activation: str = static("tanh", "activation of the hidden layers", choices=tuple(ACTIVATIONS))
    layer_norm: bool = static(False, "normalise what goes into each activation (Ba et al., 2016)")
    convolutions: bool = static(True, "images go through convolutions first; otherwise they are flattened")
    initialization: str = static("orthogonal", "how dense layers begin", choices=INITIALIZATIONS)
    shared_torso: bool = static(False, "policy and critic share all layers but the last; not in NPG and TRPO")
    joint_update: bool = static(False, "one loss and Adam for policy and critic, as in CleanRL, SB3; not in NPG, TRPO")
    value_coef: float = number(0.5, "[0, inf)", "weight of ½ (V - target)² in the loss of shared_torso or joint_update")
    recurrent: str = static("none", "a recurrent cell after the hidden layers, in policy and critic", choices=RECURRENT)
    recurrent_size: int = static(64, "width of the recurrent cell's hidden state", interval="[1, 1e5]")
    policy_network: Any = static(None, "a flax module of your own: what the policy sees ↦ its parameters")
    critic_network: Any = static(None, "a flax module of your own: what the critic sees ↦ V")
    policy_obs: tuple[str, ...] = static((), "entries of a dictionary observation that the policy sees; none is all")
    critic_obs: tuple[str, ...] = static((), "entries of a dictionary observation that the critic sees; none is all")
    precision: str = static(
        "default",
        "of matrix products: on a GPU default is TF32, on a TPU bfloat16; highest is float32",
        choices=PRECISIONS,
    )
    action_distribution: str = static("gaussian", "distribution of continuous actions", choices=ACTION_DISTRIBUTIONS)
    noise_steps: int = static(0, "steps for which gsde holds its noise; 0 is a whole rollout", interval="[0, 1e9]")
    log_std_init: float = number(0.0, "[-20, 20]", "log σ of a Gaussian policy before training")
    normalize_observations: bool = static(False, "standardise observations with running statistics")
    normalize_rewards: bool = static(False, "divide rewards by the running std of the discounted return")

    kernels: str = static("auto", "rollouts and Adam's epochs as XLA has them, or each a GPU kernel", choices=KERNELS)

    eval_interval: int = static(0, "evaluate every so many updates; 0 is never", interval="[0, 1e9]")
    eval_episodes: int = static(10, "episodes per evaluation at intervals", interval="[1, 1e6]")
    eval_max_steps: int = static(100_000, "steps after which evaluations truncate an episode", interval="[1, 1e9]")
    eval_greedy: bool = static(True, "evaluate the policy's mode; otherwise its samples")

    def __new__(cls, *args: Any, **settings: Any) -> "Config":
        own, others = cls.__dataclass_fields__, hyperparameters()
        for unknown in settings.keys() - own.keys():
            algo = type(settings.get("algo", PPO()))
            ours = unknown if hasattr(algo, unknown) and unknown in others else meant(unknown, [*own, *others])
            if ours in others and not hasattr(algo, ours):
                algo = ALGORITHMS[next((x for x in ("ppo", "trpo") if x in others[ours]), others[ours][0])]
            if ours in others:
                hint = f"did you mean algo={algo.__name__}({ours}=…)?"
            else:
                hint = did_you_mean(unknown, own) or f"there are: {', '.join(own)}."
            raise UsageError(f"{unknown!r:.80} is not a setting of Config; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("hidden_sizes", "critic_hidden_sizes", "policy_obs", "critic_obs", "anneal", "stages"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not hasattr(self.algo, "init"):
            return  # JAX rebuilds the tree with placeholders for algorithms; `check` refuses what is none
        usual = {**DEFAULTS, **traits_of(self.algo).published}
        unset = [name for name in usual if getattr(self, name) is None]
        for name in unset:
            object.__setattr__(self, name, usual[name])
        if "num_minibatches" in unset:
            object.__setattr__(self, "num_minibatches", self.adapted_minibatches)
        if self.minibatch_size and isinstance(self.num_envs, int) and isinstance(self.num_steps, int):
            object.__setattr__(self, "num_minibatches", max(1, self.steps_per_update // self.minibatch_size))

    @property
    def environment(self) -> BaseEnv:
        """The environment itself, with frames stacked and actions repeated if they are to be. Raises: UsageError."""
        env = make_env(self.env) if isinstance(self.env, str) else self.env
        return wrapped(adapt(env, self.env), self.frame_stack, self.action_repeat)

    @property
    def env_name(self) -> str:
        """What the environment is called in files and figures."""
        return self.env if isinstance(self.env, str) else without_address(self.env)

    @property
    def algo_name(self) -> str:
        """What the algorithm is called there: its name in `ALGORITHMS`, if it has one."""
        names = {cls: name for name, cls in ALGORITHMS.items()}
        return names.get(type(self.algo), type(self.algo).__name__)

    @property
    def on_host(self) -> bool:
        """Whether the environments are stepped on the host, see `envs/host/env.py`, and not by the compiled program."""
        return self.environment.on_host

    @property
    def steps_per_update(self) -> int:
        """Environment steps per seed and update: num_envs × num_steps."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """⌈total_steps / steps_per_update⌉."""
        return -(-self.total_steps // self.steps_per_update)

    @property
    def env_steps(self) -> int:
        """Environment steps per seed that are really made."""
        return self.num_updates * self.steps_per_update

    @property
    def adapted_minibatches(self) -> int:
        """`num_minibatches`; with recurrent networks its greatest common divisor with `num_envs`."""
        if self.is_recurrent and isinstance(self.num_envs, int):
            return math.gcd(self.num_minibatches, self.num_envs)
        return self.num_minibatches

    @property
    def is_joint(self) -> bool:
        """Whether one loss moves policy and critic together."""
        return self.shared_torso or self.joint_update

    @property
    def is_recurrent(self) -> bool:
        """Whether the policy or the critic has a hidden state."""
        return any(is_recurrent(self.recurrent, network) for network in (self.policy_network, self.critic_network))

    @single_precision
    def check(self) -> None:
        """Refuse what cannot work, before anything is compiled. Traced numbers are not checked. Raises: UsageError."""
        methods = {"init", "ask", "tell"} if traits_of(self.algo).evolves else {"init", "update"}
        if isinstance(self.algo, type) or not methods <= {*dir(self.algo)}:
            known = ", ".join(algorithm.__name__ for algorithm in ALGORITHMS.values())
            raise UsageError(f"algo = {self.algo!r} is not an algorithm; pass an instance of one: {known}.")
        usual = {**DEFAULTS, **traits_of(self.algo).published}
        named = self
        if not isinstance(self.optimizer, str):
            check_optimizer(self.optimizer, self.optimizer_eps, self.weight_decay)
            named = self.replace(optimizer="adam")
        check_fields(named, usual)
        check_fields(self.algo, usual)
        owners = (self.algo,) if traits_of(self.algo).evolves else (self, self.algo)
        idle = () if isinstance(self.optimizer, str) else ("optimizer_eps", "weight_decay")
        check_stages(self.stages, owners, (*fixed_numbers(self.algo), *idle))
        if self.num_updates >= 2**31:
            raise UsageError(f"total_steps = {self.total_steps} takes 2³¹ updates or more; raise num_steps.")
        check_minibatches(self)
        if traits_of(self.algo).evolves:
            check_members(self, {field.name: field.default for field in dataclasses.fields(self)} | usual)
        check_kernels(self.kernels)
        check_env(self.environment, repr(self.env))
        check_agent(self, self.environment)

    def check_mesh(self, env: int, net: int) -> None:
        """Refuse `env` × `net` devices, on the axes of those names, if they cannot share a run. Raises as `check`."""
        check_mesh(self, env, net)


def as_config(config: Any) -> Config:
    """What is a `Config`. Raises: UsageError: it is something else."""
    if not isinstance(config, Config):
        raise UsageError(
            f"config = {config!r:.80} is no Config; pass Config(env=…, algo=TRPO()), or preset('trpo', env)."
        )
    return config
