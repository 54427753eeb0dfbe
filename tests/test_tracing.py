"""What may be built under a trace."""

import jax

from purejaxppo.envs.gymnax import GymnaxEnv


def test_an_environment_may_be_made_under_a_trace():
    """As `make_train` does, called under a trace with traced numbers before any other use of the environment."""

    def reset(key):
        return GymnaxEnv("CartPole-v1").reset(key)[1]

    assert jax.eval_shape(reset, jax.random.key(0)).shape == (4,)
