"""Policy and value networks, and their orthogonal initialisation."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from purejaxppo.distributions import (
    FORBIDDEN,
    Bernoulli,
    Beta,
    Categorical,
    DiagonalGaussian,
    FactoredCategorical,
    TanhGaussian,
)
from purejaxppo.types import (
    ACTION_MASK,
    Box,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Observation,
    ObservationSpace,
    Space,
    UsageError,
    reason,
)

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "swish": nn.swish}
ACTION_DISTRIBUTIONS = ("gaussian", "gaussian-state-std", "tanh-gaussian", "beta")
LOG_STD_RANGE = (-5.0, 2.0)  # of log σ where it depends on the state


def orthogonal(gain: float) -> Any:
    """Initialiser: `gain` times a Haar-random matrix with orthonormal rows or columns (Saxe et al., 2014).

    Gram–Schmidt, each column projected twice ("twice is enough": Giraud et al., 2005), instead of LAPACK's QR:
    batched QR under `vmap` deadlocks XLA on CPUs with few cores, and is slow on a GPU for small matrices.
    """

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = max(shape), min(shape)
        gaussian = jax.random.normal(key, (columns, rows), dtype)

        def orthonormalize(i: jax.Array, basis: jax.Array) -> jax.Array:
            vector = gaussian[i]
            for _ in range(2):  # rows of `basis` not yet filled are 0 and take nothing away
                vector -= (basis @ vector) @ basis
            return basis.at[i].set(vector / jnp.linalg.norm(vector))

        basis = jax.lax.fori_loop(0, columns, orthonormalize, jnp.zeros_like(gaussian))
        return gain * (basis if shape[0] == columns else basis.T)

    return init


def dense(features: int, gain: float) -> nn.Dense:
    return nn.Dense(features, kernel_init=orthogonal(gain))


def head(features: int, gain: float) -> nn.Dense:
    """A last layer, of few outputs."""
    return nn.Dense(features, kernel_init=orthogonal(gain), dot_general=_narrow_matmul)


def _narrow_matmul(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """x [..., I] · kernel [I, O] for small O, written so that XLA's CPU backend is fast at the kernel's gradient.

    That is computed as gᵀx, [O, I], and then transposed; xᵀg takes 4 to 12 times as long. The barrier keeps XLA from
    making the one of the other.
    """
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(x, transposed, (((x.ndim - 1,), (1,)), ((), ())))


def convolution(x: jax.Array, features: int, size: int, stride: int = 1) -> jax.Array:
    """A convolution without padding, and ReLU: [..., H, W, C] -> [..., H', W', features].

    It is written as one matmul on patches: with one set of filters per seed, XLA's grouped convolutions are many times
    slower.
    """
    height, width = (x.shape[axis] - size + 1 for axis in (-3, -2))
    patches = [x[..., i : i + height : stride, j : j + width : stride, :] for i in range(size) for j in range(size)]
    return nn.relu(dense(features, 2**0.5)(jnp.concatenate(patches, axis=-1)))


class Torso(nn.Module):
    """Observation → features: each entry is encoded, in the order of their names; then all go through one MLP.

    Vectors and matrices are flattened; integers are embedded (as wide as the first hidden layer). Images [H, W, C] of
    at least 36 × 36 go through the network of Mnih et al. (2015, Nature 518; dense 512 included, bytes divided by
    255), smaller ones through 16 filters, 3×3 (Young and Tian, 2019, arXiv:1903.03176); ReLU in both.
    """

    space: ObservationSpace  # what it sees
    hidden_sizes: tuple[int, ...]
    activation: str
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: Observation) -> jax.Array:  # [..., O] -> [..., features]
        entries = select(self.space, obs)
        if isinstance(self.space, Mapping):
            x = jnp.concatenate([self._encode(self.space[name], entries[name]) for name in entries], axis=-1)
        else:
            x = self._encode(self.space, entries)
        for size in self.hidden_sizes:
            x = dense(size, 2**0.5)(x)
            x = ACTIVATIONS[self.activation](nn.LayerNorm()(x) if self.layer_norm else x)
        return x

    def _encode(self, space: Any, obs: jax.Array) -> jax.Array:
        if isinstance(space, Discrete):
            return nn.Embed(space.n, self.hidden_sizes[0] if self.hidden_sizes else 64)(obs)
        rank = len(space.shape)
        x = obs.astype(jnp.float32)
        batch_shape = x.shape[: x.ndim - rank]
        if is_large_image(space):
            x = x / 255.0 if obs.dtype == jnp.uint8 else x
            x = convolution(convolution(convolution(x, 32, 8, 4), 64, 4, 2), 64, 3)
            return nn.relu(dense(512, 2**0.5)(x.reshape(*batch_shape, -1)))
        if rank == 3:
            x = convolution(x, 16, 3)
        return x.reshape(*batch_shape, -1)


def is_large_image(space: Box) -> bool:
    return len(space.shape) == 3 and min(space.shape[:2]) >= 36


def select(space: ObservationSpace, obs: Observation) -> Observation:
    """The entries of an observation that `space` has, sorted by name; the observation itself if it is no dict."""
    return {name: obs[name] for name in sorted(space)} if isinstance(space, Mapping) else obs


def visible(space: ObservationSpace, names: tuple[str, ...]) -> ObservationSpace:
    """The part of a space that a network sees: the entries of these names, or all but the action mask."""
    if not isinstance(space, Mapping):
        return space
    return {name: space[name] for name in names or sorted(space.keys() - {ACTION_MASK})}


class PolicyNetwork(nn.Module):
    """π(·|s), a distribution over `action_space`; the last layer gives the parameters that `num_parameters` counts.

    Actions that the observation's mask forbids have probability exactly 0. With `network`, a module of the user's own,
    that one gives the parameters, or a distribution itself; it sees the entries of `space`.
    """

    action_space: Space
    space: ObservationSpace
    hidden_sizes: tuple[int, ...]
    activation: str
    layer_norm: bool = False
    action_distribution: str = "gaussian"
    network: nn.Module | None = None

    @nn.compact
    def __call__(self, obs: Observation) -> Any:
        acted, size = self.action_space, num_parameters(self.action_space, self.action_distribution)
        if self.network is not None:
            x = self.network(select(self.space, obs))
        else:
            x = head(size, 0.01)(Torso(self.space, self.hidden_sizes, self.activation, self.layer_norm)(obs))
        if not isinstance(x, jax.Array):
            return x
        mask = obs.get(ACTION_MASK) if isinstance(obs, Mapping) else None
        if isinstance(acted, Discrete):
            return Categorical(masked(x, mask))
        if isinstance(acted, MultiDiscrete):
            ends = np.cumsum(acted.nvec)[:-1]
            masks = [None] * len(acted.nvec) if mask is None else jnp.split(mask, ends, axis=-1)
            return FactoredCategorical.of(list(map(masked, jnp.split(x, ends, axis=-1), masks)))
        if isinstance(acted, MultiBinary):
            return Bernoulli(x)
        return self._over_box(x)

    def _over_box(self, x: jax.Array) -> Any:
        kind = self.action_distribution
        if kind == "beta":
            return Beta(*jnp.split(1.0 + nn.softplus(x), 2, axis=-1))
        if kind == "gaussian-state-std":
            mean, log_std = jnp.split(x, 2, axis=-1)
            return DiagonalGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))
        log_std = jnp.broadcast_to(self.param("log_std", nn.initializers.zeros, x.shape[-1:]), x.shape)
        return (TanhGaussian if kind == "tanh-gaussian" else DiagonalGaussian)(x, log_std)


def num_parameters(space: Space, action_distribution: str) -> int:
    """How many numbers a network must give for π(·|s).

    n logits for Discrete and MultiBinary, Σ nvec for MultiDiscrete. For a Box of k numbers k means, with log σ a
    parameter beside the network; 2k, means and then log σ, for `gaussian-state-std`; 2k for `beta`, x and then y, of
    which α = 1 + softplus(x) and β = 1 + softplus(y).
    """
    if isinstance(space, Box):
        return math.prod(space.shape) * (2 if action_distribution in ("gaussian-state-std", "beta") else 1)
    return sum(space.nvec) if isinstance(space, MultiDiscrete) else space.n


def masked(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`FORBIDDEN` where the mask is False; where it forbids everything, the logits as they are."""
    if mask is None:
        return logits
    return jnp.where(mask | ~jnp.any(mask, axis=-1, keepdims=True), logits, FORBIDDEN)


def check_network(name: str, network: Any, obs: Observation, shape: tuple[int, ...]) -> None:
    """Hold a module of the user's own, if there is one, against what is asked of it, without running it.

    Raises:
        UsageError: it is no flax module, fails, or returns an array of another shape.
    """
    if network is None:
        return
    if not isinstance(network, nn.Module):
        raise UsageError(f"{name} = {network!r:.80} is no flax.linen Module; pass an instance of one.")
    try:
        returned, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), obs)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{name} = {type(network).__name__} fails on one observation ({reason(error)}).") from error
    if getattr(returned, "shape", shape) != shape:
        raise UsageError(
            f"{name} = {type(network).__name__} returns shape {returned.shape} for one observation; make it {shape}."
        )


class ValueNetwork(nn.Module):
    """V(s), without the trailing axis. With `network`, a module of the user's own, it is what that one returns."""

    space: ObservationSpace
    hidden_sizes: tuple[int, ...]
    activation: str
    layer_norm: bool = False
    network: nn.Module | None = None

    @nn.compact
    def __call__(self, obs: Observation) -> jax.Array:
        if self.network is not None:
            return self.network(select(self.space, obs))
        return head(1, 1.0)(Torso(self.space, self.hidden_sizes, self.activation, self.layer_norm)(obs))[..., 0]
