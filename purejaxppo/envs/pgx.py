"""pgx games (https://github.com/sotetsuk/pgx): MinAtar, 2048, and board games against a random opponent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pgx

from purejaxppo.envs.common import TimedEnv, quiet
from purejaxppo.spaces import ACTION_MASK, Box, Discrete, MultiBinary
from purejaxppo.types import Observation


def names() -> list[str]:
    return list(pgx.available_envs())


class Game(NamedTuple):
    """A game, and which of its players the policy is."""

    board: Any
    player: jax.Array  # [] int32


class PgxEnv(TimedEnv):
    """One game. In those of several players the policy is one of them, drawn at the start, and the others play at
    random, within `step`: so each observation is the policy's own view, at its turn or at the end.

    An observation is a dictionary: `board`, and as `action_mask` the legal moves. (An illegal one would lose at once.)

    Args:
        name: `minatar-breakout`, say.
        max_steps: the time limit, which truncates. Some games end earlier, as pgx limits their moves, and calls that an
            end.
    """

    def __init__(self, name: str, max_steps: int = 10_000) -> None:
        with quiet():
            self._env: Any = pgx.make(name)
            board = jax.eval_shape(self._env.init, jax.random.key(0))
        self.time_limit = max_steps
        num_actions = board.legal_action_mask.shape[0]
        self.observation_space = {
            "board": Box(-jnp.inf, jnp.inf, board.observation.shape),
            ACTION_MASK: MultiBinary(num_actions),
        }
        self.action_space = Discrete(num_actions)

    def start(self, key: jax.Array) -> tuple[Game, Observation]:
        start_key, player_key, opponents_key = jax.random.split(key, 3)
        player = jax.random.randint(player_key, (), 0, self._env.num_players)
        board, _ = self._opponents(opponents_key, self._env.init(start_key), player)
        return Game(board, player), self._observe(board, player)

    def advance(self, key: jax.Array, inner: Game, action: jax.Array) -> tuple[Game, Observation, jax.Array, jax.Array]:
        (board, player), (own_key, opponents_key) = inner, jax.random.split(key)
        board = self._env.step(board, action, own_key)
        reward = board.rewards[player]
        board, more = self._opponents(opponents_key, board, player)
        return Game(board, player), self._observe(board, player), reward + more, board.terminated

    def _observe(self, board: Any, player: jax.Array) -> Observation:
        seen = self._env._observe(board, player)  # `board.observation` is whose turn it is
        return {"board": seen.astype(jnp.float32), ACTION_MASK: board.legal_action_mask}

    def _opponents(self, key: jax.Array, board: Any, player: jax.Array) -> tuple[Any, jax.Array]:
        """`(board, reward)` once all others have moved, uniformly among their legal moves."""
        if self._env.num_players == 1:
            return board, jnp.zeros(())

        def waiting(carry: Any) -> jax.Array:
            _, board, _ = carry
            return ~board.terminated & (board.current_player != player)

        def move(carry: Any) -> Any:
            key, board, reward = carry
            key, choice_key, step_key = jax.random.split(key, 3)
            action = jax.random.categorical(choice_key, jnp.log(board.legal_action_mask.astype(jnp.float32)))
            board = self._env.step(board, action, step_key)
            return key, board, reward + board.rewards[player]

        _, board, reward = jax.lax.while_loop(waiting, move, (key, board, jnp.zeros(())))
        return board, reward
