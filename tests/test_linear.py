"""Products with a kernel: values and derivatives against float64, and what the pass back is made of."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxppo.networks.linear import forward_mode, matmul, narrow_matmul

RNG = np.random.default_rng(0)
PRODUCTS = {"matmul": matmul, "narrow": narrow_matmul}


def numbers(*shape):
    return RNG.standard_normal(shape)


def primitives(fn, *arguments):
    return [equation.primitive.name for equation in jax.make_jaxpr(fn)(*arguments).eqns]


@pytest.mark.parametrize("rows", [(), (1,), (7,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("forward", [False, True])
def test_product_and_derivatives_in_both_directions(name, rows, forward):
    """y = xW, dy = dx W + x dW, and back gWᵀ and xᵀg, summed over all rows."""
    x, dx, W, dW, g = (numbers(*shape) for shape in ((*rows, 4), (*rows, 4), (4, 3), (4, 3), (*rows, 3)))
    x32, dx32, W32, dW32, g32 = (jnp.asarray(array, jnp.float32) for array in (x, dx, W, dW, g))
    product = PRODUCTS[name]

    def both(x, W):
        return jax.jvp(product, (x, W), (dx32, dW32)), jax.vjp(product, x, W)[1](g32)

    with forward_mode() if forward else contextlib.nullcontext():
        (y, dy), (back_x, back_W) = both(x32, W32)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(y, x @ W, **close)
    np.testing.assert_allclose(dy, dx @ W + x @ dW, **close)
    np.testing.assert_allclose(back_x, g @ W.T, **close)
    np.testing.assert_allclose(back_W, x.reshape(-1, 4).T @ g.reshape(-1, 3), **close)


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_of_many_kernels_at_once_and_of_gradients(name):
    """vmap over kernels; and of L = ½ Σ (xW)² the Hessian in W, [xᵀx ⊗ 1], and ∂²L/∂x∂W applied to a direction."""
    x, W, dW = numbers(2, 6, 4), numbers(2, 4, 3), numbers(2, 4, 3)

    def loss(x, W):
        return 0.5 * jnp.sum(PRODUCTS[name](x, W) ** 2)

    at = [jnp.asarray(array, jnp.float32) for array in (x, W)]
    gradient = jax.vmap(jax.grad(loss, 1))(*at)
    np.testing.assert_allclose(gradient, np.einsum("bni,bnj,bjo->bio", x, x, W), rtol=1e-4, atol=1e-4)

    def along(x, W, dW):
        return jax.jvp(lambda W: jax.grad(loss, (0, 1))(x, W), (W,), (dW,))[1]

    mixed, hessian = jax.vmap(along)(*at, jnp.asarray(dW, jnp.float32))
    np.testing.assert_allclose(hessian, np.einsum("bni,bnj,bjo->bio", x, x, dW), rtol=1e-4, atol=1e-4)
    expected = np.einsum("bnj,bjo,bio->bni", x, W, dW) + np.einsum("bnj,bjo,bio->bni", x, dW, W)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-4)


def test_the_transposed_copy_is_made_once_and_read_as_it_lies():
    """However often a pull back is called: it holds one product, with xᵀ, of which at most the result is transposed."""
    x, W = jnp.ones((6, 4)), jnp.ones((4, 3))
    _, pull_back = jax.vjp(lambda W: matmul(x, W), W)
    assert [name for name in primitives(pull_back, jnp.ones((6, 3))) if name != "transpose"] == ["dot_general"]
    (product,) = (e for e in jax.make_jaxpr(pull_back)(jnp.ones((6, 3))).eqns if e.primitive.name == "dot_general")
    kept = max((v.aval.shape for v in product.invars), key=lambda shape: shape[1])
    assert kept == (4, 6)  # xᵀ


def test_in_forward_mode_nothing_is_copied_and_afterwards_it_is_again():
    x, W = jnp.ones((6, 4)), jnp.ones((4, 3))

    def copies():
        return primitives(jax.grad(lambda W: matmul(x, W).sum()), W).count("optimization_barrier")

    def interrupted():
        with forward_mode():
            assert copies() == 0
            assert primitives(jax.linearize(lambda W: matmul(x, W), W)[1], W) == ["dot_general"]
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert copies() == 1
