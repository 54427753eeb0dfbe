"""PRNG keys: what is refused as one, and that none is used twice."""

import collections
import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk
from support import assert_same_bits, quick_jit

from purejaxppo import A2C, NPG, Config, evaluate, init, make_train, update_step
from purejaxppo.errors import UsageError
from purejaxppo.keys import as_key

prng = sys.modules[type(jax.random.key(0)).__module__]  # where all of jax.random draws, splits and folds in
KEY = jax.random.key(0)
SMALL = {"num_envs": 2, "num_steps": 2, "hidden_sizes": (2,), "num_minibatches": 1, "num_epochs": 2}


@contextlib.contextmanager
def recording(monkeypatch):
    """How often each key is used, by its words: drawn from, split, or folded into with one and the same number."""
    uses = collections.Counter()

    def record(what, key, *number):
        for words, *numbers in zip(
            np.asarray(key).reshape(-1, 2).tolist(), *(np.ravel(x).tolist() for x in number), strict=True
        ):
            uses[(tuple(words), what, *numbers)] += 1

    def spy(name, what, with_number=False):
        original = getattr(prng, name)

        def call(keys, *rest, **options):
            words = prng.random_unwrap(keys)
            number = [jnp.broadcast_to(rest[0], keys.shape)] if with_number else []
            jax.debug.callback(lambda *x: record(what, *x), words, *number)
            return original(keys, *rest, **options)

        monkeypatch.setattr(prng, name, call)

    jax.clear_caches()
    spy("random_bits", "draw")
    spy("random_split", "split")
    spy("random_fold_in", "fold", with_number=True)
    try:
        yield uses
        jax.effects_barrier()
    finally:
        monkeypatch.undo()
        jax.clear_caches()


@pytest.mark.thorough
def test_no_key_is_used_twice(monkeypatch):
    """In training and in evaluations, of seeds 0 and 1: of updates, epochs, resets, actions, Fisher samples."""
    config = Config(env=Walk(limit=2), algo=NPG(fisher_subsample=2, cg_iterations=1), eval_greedy=False, **SMALL)

    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    with recording(monkeypatch) as uses:
        update = quick_jit(jax.vmap(lambda state: update_step(config, state)))
        evaluation = quick_jit(jax.vmap(lambda state, key: evaluate(config, state, key, 2)))
        state = quick_jit(jax.vmap(lambda key: init(config, key)))(keys)
        for _ in range(2):
            state, _ = update(state)
            evaluation(state, state.key)
        evaluation(state, keys)  # with the run's own key, as a user might
    drawn, split = ({words for words, what, *_ in uses if what == kind} for kind in ("draw", "split"))
    folded = {(words, *number) for words, what, *number in uses if what == "fold"}
    assert len(drawn) > 50
    assert len(split) > 20
    assert len(folded) >= 8
    assert not drawn & split
    assert not drawn & {words for words, _ in folded}
    assert max(number for _, number in folded) > 2**28  # none that a split gives away
    assert min(number for _, number in folded) > 2**28
    assert {use: count for use, count in uses.items() if use[1] == "draw" and count > 1} == {}


@pytest.mark.parametrize("key", [0, None, np.zeros(2), jnp.zeros((), jnp.uint32), jax.random.split(jax.random.key(0))])
def test_what_is_no_key_is_told_in_one_line(key):
    config = Config(env=Walk(), algo=A2C(), **SMALL)
    for call in (make_train(config), lambda key: evaluate(config, jax.eval_shape(make_train(config), KEY)[0], key, 1)):
        with pytest.raises(UsageError, match=r"^key = .* is not one PRNG key; pass jax.random.key\(0\).*$"):
            call(key)


def test_the_words_of_an_old_style_key_are_a_key():
    assert_same_bits(as_key(jax.random.PRNGKey(7)), jax.random.key(7))
