"""From an observation to features: encoders, hidden layers, and their orthogonal initialisation."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from purejaxppo.networks.linear import matmul, narrow_matmul
from purejaxppo.spaces import Discrete, ObservationSpace, channels_first
from purejaxppo.types import Observation


@jax.custom_jvp
def tanh(x: jax.Array) -> jax.Array:
    """tanh, elementwise, whose slope (1 - y)(1 + y) is worked out once where a network is linearised.

    A tangent then costs one product. With JAX's own rule, (dx + dx · y)(1 - y), it costs three, in each layer of every
    Fisher-vector product.
    """
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = jnp.tanh(primals[0])
    return y, (1.0 - y) * (1.0 + y) * tangents[0]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": tanh,
    "relu": nn.relu,
    "swish": nn.swish,
    "silu": nn.swish,  # another name of it
    "elu": nn.elu,
    "gelu": nn.gelu,
    "leaky_relu": nn.leaky_relu,
}
INITIALIZATIONS = ("orthogonal", "lecun-uniform", "pytorch")


class Orthogonal(struct.PyTreeNode, nn.meta.AxisMetadata[jax.Array]):
    """A kernel [I, O] that `orthogonalize` is to fill; zeros until then."""

    value: jax.Array
    gain: float = struct.field(pytree_node=False)

    def unbox(self, apply_constraint: bool = True) -> jax.Array:
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Orthogonal":
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Orthogonal":
        return self


def orthogonal(gain: float) -> Any:
    """Initialiser of a kernel that is to be `gain` times an orthonormal matrix, once `orthogonalize` has filled it."""
    return lambda key, shape, dtype=jnp.float32: Orthogonal(jnp.zeros(shape, dtype), gain)


def orthogonalize(key: jax.Array, params: Any) -> Any:
    """`params`, each `Orthogonal` kernel filled: `gain` times a Haar-random matrix with orthonormal rows or columns.

    (Saxe et al., 2014.) All random numbers are drawn at once, and all kernels whose longer side is equally long are
    made at once: one by one, they were a fifth of all that a training program compiles to.
    """
    leaves, structure = jax.tree.flatten(params, is_leaf=lambda x: isinstance(x, Orthogonal))
    alike: dict[int, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Orthogonal):
            alike.setdefault(max(leaf.value.shape), []).append(i)
    shapes = [(len(which), max(min(leaves[i].value.shape) for i in which), length) for length, which in alike.items()]
    sizes = [math.prod(shape) for shape in shapes]
    gaussian = jnp.split(jax.random.normal(key, (sum(sizes),), jnp.float32), np.cumsum(sizes)[:-1])
    for which, shape, entries in zip(alike.values(), shapes, gaussian, strict=False):  # no kernel at all: one, empty
        for i, basis in zip(which, gram_schmidt(entries.reshape(shape)), strict=True):
            value = leaves[i].value
            rows = basis[: min(value.shape)].astype(value.dtype)
            leaves[i] = leaves[i].gain * (rows if rows.shape == value.shape else rows.T)
    return jax.tree.unflatten(structure, leaves)


def gram_schmidt(vectors: jax.Array) -> jax.Array:
    """Orthonormal rows [M, C, L] that span what the rows of each of M matrices span, C ≤ L.

    Each is projected twice ("twice is enough": Giraud et al., 2005). Not LAPACK's QR: under `vmap` that deadlocks XLA
    on CPUs with few cores, and is slow on a GPU for small matrices.
    """
    project = partial(jnp.einsum, precision="highest")  # with TF32 or bfloat16 they would not be orthogonal

    def orthonormalize(i: jax.Array, bases: jax.Array) -> jax.Array:
        vector = vectors[:, i]
        for _ in range(2):  # rows of `bases` not yet filled are 0 and take nothing away
            vector -= project("mcl,mc->ml", bases, project("mcl,ml->mc", bases, vector))
        return bases.at[:, i].set(vector / jnp.linalg.norm(vector, axis=1, keepdims=True))

    return jax.lax.fori_loop(0, vectors.shape[1], orthonormalize, jnp.zeros_like(vectors))


def initializers(initialization: str, gain: float, inputs: int) -> dict[str, Any]:
    """How a dense layer of so many inputs begins.

    `orthogonal`: kernels of that gain, biases 0 (Saxe et al., 2014; with gains as in OpenAI Baselines).
    `lecun-uniform`: kernels U(±√(3/inputs)), biases 0, as brax has it. `pytorch`: both U(±√(1/inputs)), as PyTorch's
    linear layers begin, and with them rsl_rl's.
    """
    if initialization == "orthogonal":
        return {"kernel_init": orthogonal(gain)}
    if initialization == "lecun-uniform":
        return {"kernel_init": nn.initializers.lecun_uniform()}
    return dict.fromkeys(("kernel_init", "bias_init"), partial(_uniform, inputs**-0.5))


def _uniform(bound: float, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def dense(
    x: jax.Array, features: int, gain: float, initialization: str = "orthogonal", product: Any = matmul
) -> jax.Array:
    """A hidden layer of x [..., I], before its activation."""
    begins = initializers(initialization, gain, x.shape[-1])
    return nn.Dense(features, dot_general=product, **begins)(x)


head = partial(dense, product=narrow_matmul)  # a last layer, of few outputs


LAYERS = ("hidden_sizes", "activation", "layer_norm", "initialization", "convolutions")  # settings of a `Torso`


def convolution(x: jax.Array, features: int, size: int, stride: int = 1) -> jax.Array:
    """A convolution without padding, and ReLU: [..., H, W, C] -> [..., H', W', features].

    It is written as one matmul on patches: with one set of filters per seed, XLA's grouped convolutions are many times
    slower.
    """
    height, width = (x.shape[axis] - size + 1 for axis in (-3, -2))
    patches = [x[..., i : i + height : stride, j : j + width : stride, :] for i in range(size) for j in range(size)]
    # no `dense`: of as many patches, a transposed copy would cost more than it saves
    filters = nn.Dense(features, kernel_init=orthogonal(2**0.5))
    return nn.relu(filters(jnp.concatenate(patches, axis=-1)))


class Torso(nn.Module):
    """Observation → features: each entry is encoded, in the order of their names; then all go through one MLP.

    Vectors and matrices are flattened; integers are embedded (as wide as the first hidden layer). Images [H, W, C], or
    [C, H, W] (see `channels_first`), are flattened, too, without `convolutions`; else those of at least 36 × 36 go
    through the network of Mnih et al. (2015, Nature 518; dense 512 included), smaller ones through 16 filters, 3×3
    (Young and Tian, 2019, arXiv:1903.03176); ReLU in both. Bytes of images and matrices are divided by 255. The layers
    of `hidden_sizes` after that are ours: Mnih et al. (and CleanRL's Atari PPO) have none, `hidden_sizes=()`; Young and
    Tian have one of 128 units.
    """

    space: ObservationSpace  # what it sees
    hidden_sizes: tuple[int, ...]
    activation: str
    layer_norm: bool = False
    initialization: str = "orthogonal"  # of the dense layers
    convolutions: bool = True  # False: images are flattened, too

    @nn.compact
    def __call__(self, obs: Observation) -> jax.Array:  # [..., O] -> [..., features]
        entries = select(self.space, obs)
        if isinstance(self.space, Mapping):
            x = jnp.concatenate([self._encode(self.space[name], entries[name]) for name in entries], axis=-1)
        else:
            x = self._encode(self.space, entries)
        for size in self.hidden_sizes:
            x = dense(x, size, 2**0.5, self.initialization)
            x = ACTIVATIONS[self.activation](nn.LayerNorm()(x) if self.layer_norm else x)
        return x

    def _encode(self, space: Any, obs: jax.Array) -> jax.Array:
        if isinstance(space, Discrete):
            return nn.Embed(space.n, self.hidden_sizes[0] if self.hidden_sizes else 64)(obs)
        rank = len(space.shape)
        batch_shape = obs.shape[: obs.ndim - rank]
        image = rank == 3 and self.convolutions
        # flat before it is converted: over a last axis of few channels, XLA's loop on a CPU takes many times as long
        x = (obs if image else obs.reshape(*batch_shape, -1)).astype(jnp.float32)
        if are_bytes(space, obs.dtype):
            x = x / 255.0
        if image:
            if channels_first(space.shape):
                x = jnp.moveaxis(x, -3, -1)
            if min(x.shape[-3:-1]) >= 36:
                x = convolution(convolution(convolution(x, 32, 8, 4), 64, 4, 2), 64, 3)
                return nn.relu(dense(x.reshape(*batch_shape, -1), 512, 2**0.5, self.initialization))
            x = convolution(x, 16, 3)
        return x.reshape(*batch_shape, -1)


def are_bytes(space: Any, dtype: Any) -> bool:
    """Whether observations are divided by 255: images and matrices of uint8 whose numbers may exceed 1."""
    return dtype == jnp.uint8 and len(space.shape) > 1 and bool(np.max(space.high) > 1)


def select(space: ObservationSpace, obs: Observation) -> Observation:
    """The entries of an observation that `space` has, sorted by name; the observation itself if it is no dict."""
    return {name: obs[name] for name in sorted(space)} if isinstance(space, Mapping) else obs
