"""Policy and value networks."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from purejaxppo import distributions
from purejaxppo.errors import UsageError, reason
from purejaxppo.networks.gsde import StateDependentNoise, marginal
from purejaxppo.networks.recurrent import CELLS, initial_carry, is_recurrent, swap, unroll
from purejaxppo.networks.torso import LAYERS, Torso, head, orthogonal, select
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary, MultiDiscrete, ObservationSpace, Space
from purejaxppo.types import Observation, Sequences

ACTION_DISTRIBUTIONS = ("gaussian", "gaussian-state-std", "tanh-gaussian", "tanh-gaussian-state-std", "beta", "gsde")
LOG_STD_RANGE = (-5.0, 2.0)  # of log σ where it depends on the state


def visible(space: ObservationSpace, names: tuple[str, ...]) -> ObservationSpace:
    """The part of a space that a network sees: the entries of these names, or all but the action mask."""
    if not isinstance(space, Mapping):
        return space
    return {name: space[name] for name in names or sorted(space.keys() - {ACTION_MASK})}


class Network(nn.Module):
    """What policy and critic have in common: a torso, a recurrent cell if there is one, a last layer.

    Or, with `network`, a module of the user's own, what that one returns for the entries of `space`.

    `advance` is one step: obs [..., O], hidden state [..., H] ↦ result [...], hidden state; that is () without memory.
    With `start` [T, ...] it is T of them: obs [T, ..., O], the hidden state before them ↦ results and hidden states
    after each, [T, ...].
    """

    space: ObservationSpace  # what it sees
    hidden_sizes: tuple[int, ...]
    activation: str
    layer_norm: bool = False
    network: Any = None  # a flax module
    recurrent: str = "none"
    recurrent_size: int = 64
    initialization: str = "orthogonal"  # of the dense layers
    convolutions: bool = True  # of images

    @nn.nowrap  # it needs no parameters, and is called of a module that has none
    def initial_hidden(self, obs: Observation) -> Any:
        """The hidden state [..., H] before the first of observations [..., O]; () if it has none."""
        if not is_recurrent(self.recurrent, self.network):
            return ()
        space, x = self.space, select(self.space, obs)
        if self.network is not None:
            return initial_carry(self.network, x)
        if isinstance(space, Mapping):  # any entry knows how many there are
            name = min(space)
            space, x = space[name], x[name]
        batch_shape = jnp.shape(x)[: jnp.ndim(x) - len(space.shape)]
        return initial_carry(CELLS[self.recurrent](self.recurrent_size), jnp.zeros((*batch_shape, 1)))

    def apply_batch(self, seen: Any, hidden: str) -> Any:
        """The results [N] of observations [N, O]; or [B, T] of `Sequences`, from what is in their field `hidden` on."""
        if not isinstance(seen, Sequences):
            return self.advance(seen)[0]
        obs, start = swap((seen.obs, seen.start))
        return swap(self.advance(obs, getattr(seen, hidden), start)[0])

    def _features(self, obs: Observation, hidden: Any, start: Any) -> tuple[Any, Any]:
        """What comes before the last layer, and the hidden state."""
        x = Torso(self.space, **{name: getattr(self, name) for name in LAYERS})(obs)
        if self.recurrent == "none":
            return x, hidden
        weights = {name: orthogonal(1.0) for name in ("kernel_init", "recurrent_kernel_init")}
        return unroll(CELLS[self.recurrent](self.recurrent_size, **weights), x, hidden, start)

    def _outputs(self, size: int, gain: float, obs: Observation, hidden: Any, start: Any) -> tuple[Any, Any, Any]:
        """What the last layer or the user's module returns, what the last layer is applied to, the hidden state."""
        if self.network is None:
            x, hidden = self._features(obs, hidden, start)
            return head(x, size, gain, self.initialization), x, hidden
        seen = select(self.space, obs)
        if isinstance(self.network, nn.RNNCellBase):
            result, hidden = unroll(self.network, seen, hidden, start)
            return result, None, hidden
        return self.network(seen), None, hidden


class PolicyNetwork(Network, kw_only=True):
    """π(·|s), a distribution over `action_space`; the last layer gives the parameters that `num_parameters` counts.

    Actions that the observation's mask forbids have probability exactly 0. With `network`, a module of the user's own,
    that one gives the parameters, or a distribution itself.
    """

    action_space: Space
    action_distribution: str = "gaussian"
    noise_steps: int = 0

    def __call__(self, seen: Any) -> Any:
        return marginal(self.apply_batch(seen, "hidden"))

    @nn.compact
    def advance(self, obs: Observation, hidden: Any = (), start: Any = None) -> tuple[Any, Any]:
        size = num_parameters(self.action_space, self.action_distribution)
        x, features, hidden = self._outputs(size, 0.01, obs, hidden, start)
        return self._distribution(x, features, obs), hidden

    def _distribution(self, x: Any, features: Any, obs: Observation) -> Any:
        acted, x = self.action_space, jax.tree.map(_precise, x)
        mask = obs.get(ACTION_MASK) if isinstance(obs, Mapping) else None
        if mask is not None and type(x) is distributions.Categorical:  # a module's own
            x = x.logits
        if not isinstance(x, jax.Array):
            return x
        if isinstance(acted, Discrete):
            return distributions.Categorical(masked(x, mask))
        if isinstance(acted, MultiDiscrete):
            ends = np.cumsum(acted.nvec)[:-1]
            masks = [None] * len(acted.nvec) if mask is None else jnp.split(mask, ends, axis=-1)
            return distributions.FactoredCategorical.of(list(map(masked, jnp.split(x, ends, axis=-1), masks)))
        if isinstance(acted, MultiBinary):
            return distributions.Bernoulli(x)
        return self._over_box(x, features)

    def _over_box(self, x: jax.Array, features: Any) -> Any:
        kind = self.action_distribution
        if kind == "gsde":
            weights = self.param("log_std", nn.initializers.zeros, (features.shape[-1], x.shape[-1]))
            return StateDependentNoise.of(x, features, weights, self.noise_steps)
        if kind == "beta":
            return distributions.Beta(*jnp.split(1.0 + nn.softplus(x), 2, axis=-1))
        gaussian = distributions.TanhGaussian if kind.startswith("tanh") else distributions.DiagonalGaussian
        if kind.endswith("state-std"):
            mean, log_std = jnp.split(x, 2, axis=-1)
            return gaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))
        return gaussian(x, jnp.broadcast_to(self.param("log_std", nn.initializers.zeros, x.shape[-1:]), x.shape))


def _precise(x: jax.Array) -> jax.Array:
    """At least float32: a module's layers may have fewer bits, but likelihood ratios and KL lose theirs with them."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x


class SharedNetwork(PolicyNetwork, kw_only=True):
    """Policy and critic in one, with all layers but the last in common: π, or V if it `returns_value`."""

    returns_value: bool = False

    @nn.compact
    def advance(self, obs: Observation, hidden: Any = (), start: Any = None) -> tuple[Any, Any]:
        x, hidden = self._features(obs, hidden, start)
        size = num_parameters(self.action_space, self.action_distribution)
        distribution = self._distribution(head(x, size, 0.01, self.initialization), x, obs)
        value = head(x, 1, 1.0, self.initialization)[..., 0]
        return value if self.returns_value else distribution, hidden


def num_parameters(space: Space, action_distribution: str) -> int:
    """How many numbers a network must give for π(·|s).

    n logits for Discrete and MultiBinary, Σ nvec for MultiDiscrete. For a Box of k numbers k means, with log σ a
    parameter beside the network; 2k, means and then log σ, where the distribution's name ends in `state-std`; 2k for
    `beta`, x and then y, of which α = 1 + softplus(x) and β = 1 + softplus(y).
    """
    if isinstance(space, Box):
        return math.prod(space.shape) * (2 if action_distribution.endswith(("state-std", "beta")) else 1)
    return sum(space.nvec) if isinstance(space, MultiDiscrete) else space.n


def with_log_std(params: Any, action_distribution: str, log_std: jax.Array | float) -> Any:
    """Parameters of a policy that has just been made, its log σ raised by so much from 0; others stay as they are.

    Where σ depends on the state, log σ is raised by the bias of the last layer, `Dense_0` of the module.
    """
    own = params["params"]
    if "log_std" in own:
        return {**params, "params": {**own, "log_std": own["log_std"] + log_std}}
    if not action_distribution.endswith("state-std"):
        return params
    bias = own["Dense_0"]["bias"]
    return {**params, "params": {**own, "Dense_0": {**own["Dense_0"], "bias": bias.at[bias.size // 2 :].add(log_std)}}}


def masked(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`FORBIDDEN` where the mask is False; where it forbids everything, the logits as they are."""
    if mask is None:
        return logits
    return jnp.where(mask | ~jnp.any(mask, axis=-1, keepdims=True), logits, distributions.FORBIDDEN)


def check_network(name: str, network: Any, obs: Observation, shape: tuple[int, ...], has_mask: bool = False) -> None:
    """Hold a module of the user's own, if there is one, against what is asked of it, without running it.

    Raises:
        UsageError: it is no flax module, fails, returns an array of another shape, or, where actions have a mask,
            a distribution that is not known to forbid some.
    """
    if network is None:
        return
    if not isinstance(network, nn.Module):
        raise UsageError(f"{name} = {network!r:.80} is no flax.linen Module; pass an instance of one.")
    label = f"{name} = {type(network).__name__}"

    def shapes(obs: Any, said: str) -> tuple[Any, ...]:
        """Of its variables, its hidden state before and after, and what it returns."""

        def run(obs: Any) -> tuple[Any, ...]:
            hidden = [initial_carry(network, obs)] if isinstance(network, nn.RNNCellBase) else []
            variables = network.init(jax.random.key(0), *hidden, obs)
            # without keys to draw from, as in training, and without what is no parameter, which nothing would update
            returned = network.apply({"params": variables.get("params", {})}, *hidden, obs)
            return variables, *((*hidden, *returned) if hidden else ((), (), returned))

        try:
            return jax.eval_shape(run, obs)
        except Exception as error:  # whatever the user's code raises
            raise UsageError(f"{label} fails on {said} ({reason(error)}).") from error

    variables, hidden, carried, returned = shapes(obs, "one observation")
    kept = {x.dtype for x in jax.tree.leaves(variables) if jnp.issubdtype(x.dtype, jnp.floating)}
    if few := [dtype.name for dtype in kept if dtype.itemsize < 4]:
        raise UsageError(
            f"{label} has parameters of {', '.join(few)}; leave param_dtype at float32 (dtype may be less)."
        )
    if shape == () and not hasattr(returned, "shape"):
        raise UsageError(f"{label} returns {type(returned).__name__} for one observation; make it V, an array ().")
    if getattr(returned, "shape", shape) != shape:
        raise UsageError(f"{label} returns shape {returned.shape} for one observation; make it {shape}.")
    if has_mask and not hasattr(returned, "shape") and type(returned) is not distributions.Categorical:
        raise UsageError(
            f"{label} returns {type(returned).__name__}, which no mask can rule; return the logits {shape}."
        )
    if carried != hidden:
        raise UsageError(f"{label} makes {carried} of the hidden state {hidden}; keep structure, shapes and types.")
    *_, of_two = shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), obs), "two observations")
    for one, two in zip(jax.tree.leaves(returned), jax.tree.leaves(of_two), strict=True):
        if two.shape != (2, *one.shape):
            raise UsageError(f"{label} returns shape {two.shape} for two observations; make it {(2, *one.shape)}.")


class ValueNetwork(Network):
    """V(s), without the trailing axis. With `network`, a module of the user's own, it is what that one returns."""

    def __call__(self, seen: Any) -> jax.Array:
        return self.apply_batch(seen, "critic_hidden")

    @nn.compact
    def advance(self, obs: Observation, hidden: Any = (), start: Any = None) -> tuple[jax.Array, Any]:
        x, _, hidden = self._outputs(1, 1.0, obs, hidden, start)
        return x[..., 0] if self.network is None else _precise(x), hidden
