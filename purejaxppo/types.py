"""The records that data flows through, and the protocols that parts are held to.

Shapes: T steps, B environments, N = T·B samples, O and A the shapes of one observation (or of each entry of it) and
one action.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from flax import struct

from purejaxppo.spaces import ObservationSpace, Space

Params = Any  # a pytree of float arrays
Metrics = dict[str, jax.Array]
AlgorithmState = Any  # a pytree: optimiser moments, β, or () where there is nothing to keep
EnvState = Any  # a pytree, whatever the environment keeps
Observation = Any  # an array [O], or a dict of arrays


class Env(Protocol):
    """One environment, unbatched. Pure functions; the time limit is part of it; no auto-reset.

    `terminated`: the process ended, the value of what follows is 0. `truncated`: it was cut off, by a time limit
    say, and the value of what follows is V(obs) of the observation returned by that very step.

    An observation may be a dict of arrays. Its entry `action_mask`, bool [n] for Discrete(n) and [Σ nvec] for
    MultiDiscrete(nvec), says which actions are valid: all others have probability 0. The networks do not see it.
    Where no action (of a factor) is valid, after the end say, all are taken to be.

    What an environment may have beside this, such as `render(state)`, and what then holds without: `envs/base.py`.
    """

    @property
    def observation_space(self) -> ObservationSpace: ...

    @property
    def action_space(self) -> Space: ...

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]:
        """`(state, obs)` of a fresh episode."""
        ...

    def step(
        self, key: jax.Array, state: EnvState, action: jax.Array
    ) -> tuple[EnvState, Observation, jax.Array, jax.Array, jax.Array]:
        """`(state, obs, reward, terminated, truncated)`, `obs` being the one really reached."""
        ...


Policy = Callable[[Params, Any], Any]  # (params, `Batch.obs`) -> a distribution [N], see distributions.py


class Transition(NamedTuple):
    """What a rollout records."""

    obs: Observation  # [T, B, O] as the environment gave it
    action: jax.Array  # [T, B, A] as the policy drew it, see `bound` in distributions.py
    reward: jax.Array  # [T, B] as the environment gave it
    terminated: jax.Array  # [T, B] bool
    truncated: jax.Array  # [T, B] bool
    next_obs: Observation  # [T, B, O] what the step led to, before any reset
    distribution: Any  # [T, B, ...] π(·|obs) of the behaviour policy


class Sequences(NamedTuple):
    """What recurrent networks see of a rollout: what each environment showed, in order."""

    obs: Observation  # [B, T, O]
    start: jax.Array  # [B, T] bool, the first of an episode: what was before is forgotten
    hidden: Any  # [B, H] the policy's hidden state before the first of them; () where it has none
    critic_hidden: Any  # [B, H] likewise


class Batch(NamedTuple):
    """What an update learns from: one rollout, flattened to N = T·B samples.

    Where a network is recurrent, to N = B sequences: every [N, ...] below is [B, T, ...] then.
    """

    obs: Any  # Observation [N, O] normalised, if the run normalises; or Sequences
    action: jax.Array  # [N, A]
    log_prob: jax.Array  # [N] log π_old(a|s)
    distribution: Any  # [N, ...] π_old(·|s)
    value: jax.Array  # [N] V(s) before the update
    advantage: jax.Array  # [N]
    value_target: jax.Array  # [N]


class RolloutState(NamedTuple):
    """Where the environments stand between two rollouts."""

    env: EnvState  # [B, ...]
    obs: Observation  # [B, O]
    episode_return: jax.Array  # [B] undiscounted, so far
    episode_length: jax.Array  # [B] int32, so far
    hidden: Any = ()  # [B, H] the policy's; counts for nothing where `episode_length` is 0
    critic_hidden: Any = ()  # [B, H]


class Failure(NamedTuple):
    """When and why a run's numbers turned non-finite; its state is then the last finite one."""

    update: jax.Array  # [] int32, the update that could not be made, counted from 1; 0 is none
    cause: jax.Array  # [] int32, see health.CAUSES; 0 is none


class Learnt(NamedTuple):
    """What a new run may begin with: what another has learnt of the same spaces."""

    policy: Params
    critic: Params
    observation_statistics: Any
    reward_statistics: Any


class TrainState(struct.PyTreeNode):
    """Everything about a run: save it, and the run can go on bit for bit."""

    policy: Params
    critic: Params  # () where they are the policy's own, or there is no critic
    algorithm: AlgorithmState
    critic_optimizer: Any  # Adam's moments
    observation_statistics: Any  # RunningStatistics over O, a dict of them, or None
    reward_normalizer: Any  # RewardNormalizer
    rollout: RolloutState
    key: jax.Array  # []
    update: jax.Array  # [] int32, updates done
    failure: Failure
    step_factor: Any = ()  # [] of Adam's step, adapted to `desired_kl`; () without it


class Algorithm(Protocol):
    """A rule that moves the policy, with pure methods.

    A `flax.struct.PyTreeNode` of its hyperparameters, or another frozen dataclass with `replace` that is a pytree.
    Every field has a default. It may say more of itself in class attributes of the names in `Traits`.
    """

    def init(self, params: Params) -> AlgorithmState: ...

    def update(
        self, key: jax.Array, policy: Policy, params: Params, state: AlgorithmState, batch: Batch, optimizer: Any
    ) -> tuple[Params, AlgorithmState, Metrics]:
        """`(params, state, metrics)` after one rollout; `optimizer` is a `MinibatchAdam`.

        The metrics are scalars. `policy_loss` and `grad_norm` (which `optimizer.minimize` returns) are required: a run
        is frozen when they turn non-finite. `kl`, the mean of KL(π_old ‖ π_new) over the batch, is expected by reports
        and by `desired_kl`.
        Means over samples that are taken outside of `optimizer.minimize` go through `mean_over_shards`
        (parallel/mesh.py), as several devices may share the batch.
        """
        ...


class EvolutionStrategy(Protocol):
    """A search for parameters of which whole episodes have the highest returns, without gradients: `evolves` is True.

    A dataclass as `Algorithm` is, with a field `envs_per_member`. D is the number of the policy's parameters. The
    policy itself is the mean [D] of the distribution that members are drawn from.
    """

    envs_per_member: int  # in which each member acts: there are num_envs / envs_per_member of them

    def init(self, params: Params) -> AlgorithmState: ...

    def ask(self, key: jax.Array, mean: jax.Array, state: AlgorithmState, num_members: int) -> jax.Array:
        """The members of a generation, [P, D]."""
        ...

    def tell(
        self, mean: jax.Array, state: AlgorithmState, members: jax.Array, fitness: jax.Array
    ) -> tuple[jax.Array, AlgorithmState, Metrics]:
        """`(mean, state, metrics)` after the members [P, D] were found to have the fitness [P]; the higher, the better.

        The metrics are scalars.
        """
        ...


class Traits(NamedTuple):
    """What an algorithm may say of itself in class attributes; these are the values of one that says nothing.

    `published` names the settings of the shared machinery (rollout, critic) that its paper or its reference
    implementations use; a `Config` takes them where its user says nothing.
    """

    published: Mapping[str, Any] = {}
    first_order: bool = True  # it follows gradients of any loss, so the critic's loss may be added to its own
    by_minibatches: bool = False  # its update is one `minimize` with all epochs, which the critic's fit may join
    run_by_run: bool = False  # it goes over the whole batch many times, see `vmapping.in_lots`
    evolves: bool = False  # it is an `EvolutionStrategy`: no critic, no gradient


def traits_of(algo: Any) -> Traits:
    """The traits of an algorithm, or of its class."""
    return Traits(**{name: getattr(algo, name) for name in Traits._fields if hasattr(algo, name)})
