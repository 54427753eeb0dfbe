"""Environments that are stepped by this machine's CPU while the compiled program waits.

A pool of processes keeps the environments; an `EnvState` only names one of them. Every `reset` outside of a rollout
opens a pool, and all that is vmapped, seeds × environments, is one call of the host and one batch of the pool. Calls
are ordered by their data: a step takes what the step before returned. So several devices may go on at once, each
with a pool of its own, where an ordered callback would allow but one.
"""

import functools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from purejaxppo.envs.base import BaseEnv, Step
from purejaxppo.envs.host.pool import EnvironmentBrokenError, Plan, Pool
from purejaxppo.envs.host.worker import RESET, SEED, STEP
from purejaxppo.errors import HostEnvironmentError
from purejaxppo.parallel.devices import cpu_cores
from purejaxppo.parallel.mesh import RUN_AXIS, run_shard, shards
from purejaxppo.parallel.vmapping import all_batched
from purejaxppo.spaces import Box, ObservationSpace, Space
from purejaxppo.types import Observation

MOST_POOLS = 4  # of one environment, times its devices or 4; beyond it the one that was used longest ago is closed
_LOCK = threading.Lock()  # for the pools of all environments
_ENVS: weakref.WeakSet["HostEnv"] = weakref.WeakSet()
ALL = slice(None)  # slots of a pool
_SMALL = 64 * 1024  # bytes; JAX copies larger arguments in a thread, for which a callback might wait in vain


class HostState(NamedTuple):
    """One environment of a pool. Not its state, which cannot be kept or gone back to."""

    pool: jax.Array  # [] int32
    slot: jax.Array  # [] int32
    ended: jax.Array  # [] bool; it will not be stepped until `restart`
    start: Observation  # of the next episode, once this one has ended


class HostEnv(BaseEnv):
    """An environment of the protocol (`types.Env`) on the host. After an end it stands still until `restart`.

    Its processes end when it is closed or nothing refers to it any more. Those of runs that have ended (see `release`)
    serve later ones with as many environments, and end when others must be started.

    Args:
        plan: how workers make one, and the entries of its observation.
        observation_space, action_space: ours.
        worth_a_worker: so many environments are enough for a process of their own, whose waking costs 50 to 100 µs.
        workers: processes of each device that runs are on; None is as many as there are cores that this process may
            use, shared by the devices, or fewer for few environments.
    """

    on_host = True
    episodes_at_once = 10  # in an evaluation: each is an environment of its own

    def __init__(
        self,
        plan: Plan,
        observation_space: ObservationSpace,
        action_space: Space,
        worth_a_worker: int = 2,
        workers: int | None = None,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._plan, self._worth_a_worker, self._workers = plan, worth_a_worker, workers
        self.tells_success = plan.tells_success
        self._told = ("reward", "terminated", "truncated", *(["success"] if plan.tells_success else []))
        self._pools: OrderedDict[int, Pool] = OrderedDict()
        self._free: list[Pool] = []
        self._users = 0
        self.failed: EnvironmentBrokenError | None = None
        with _LOCK:
            _ENVS.add(self)
        weakref.finalize(self, _close_all, self._pools)

    def reset(self, key: jax.Array) -> tuple[HostState, Observation]:
        """An environment that was not there before. All resets that are vmapped together share a pool."""
        state = _as_one_batch(self._open)(_seed(key))
        return state, state.start

    def step_with_success(self, key: jax.Array, state: HostState, action: jax.Array) -> tuple[Step, Any]:
        """`key` seeds the episode after this one, if this step ends it."""
        where = (state.pool, state.slot, state.ended)
        outcome = _as_one_batch(self._step)(where, _seed(key), action)
        reached, start, reward, terminated, truncated, *success = outcome
        state = state._replace(ended=terminated | truncated, start=start)
        return (state, reached, reward, terminated, truncated), success[0] if success else ()

    def restart(self, key: jax.Array, state: HostState) -> tuple[HostState, Observation]:
        """The episode after one that has ended; it is reset already."""
        return state._replace(ended=jnp.zeros_like(state.ended)), state.start

    def begin_anew(self, key: jax.Array, state: HostState) -> tuple[HostState, Observation]:
        where = (state.pool, state.slot, state.ended)
        start = _as_one_batch(self._begin_anew)(where, _seed(key))
        return state._replace(ended=jnp.zeros_like(state.ended), start=start), start

    def at_rest(self, state: HostState, rests: jax.Array) -> HostState:
        return state._replace(ended=state.ended | rests)

    def release(self, state: HostState) -> jax.Array:
        """Nothing more will be asked of these environments: others may have their processes."""
        return _as_one_batch(self._release)((state.pool, state.slot, state.ended))

    def __enter__(self) -> Self:
        with _LOCK:
            self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Other threads may train in the same environment: the last one closes it."""
        with _LOCK:
            self._users -= 1
            if not self._users:
                self._close()

    def close(self) -> None:
        """End all processes. States of before name nothing any more."""
        with _LOCK:
            self._close()

    def _close(self) -> None:
        _close_all(self._pools)
        self._free.clear()
        self.failed = None

    # What is compiled: calls of the host with N environments, those of each run next to one another.

    def _open(self, shape: tuple[int, ...], seeds: jax.Array) -> HostState:
        entries, n = self._entries(len(seeds)), jax.ShapeDtypeStruct((len(seeds),), jnp.int32)
        flag = jax.ShapeDtypeStruct(n.shape, bool)
        per_run = (shape or (1,))[-1]  # the last axis of a batch counts the environments of a run, those before it runs
        open_pool = functools.partial(self._host_open, shards(RUN_AXIS), per_run)
        return HostState(*self._call(open_pool, (n, n, flag, entries), seeds))

    def _step(self, shape: tuple[int, ...], where: Any, seeds: jax.Array, action: jax.Array) -> Any:
        n = len(seeds)
        entries, flag = self._entries(n), jax.ShapeDtypeStruct((n,), bool)
        returned = (entries, entries, jax.ShapeDtypeStruct((n,), jnp.float32), *[flag] * (len(self._told) - 1))
        numbers = action.astype(jnp.float32 if isinstance(self.action_space, Box) else jnp.int32)
        bits = jax.lax.bitcast_convert_type(numbers, jnp.int32).reshape(n, -1)
        return self._call(self._host_step, returned, *where, seeds, *bits.T)

    def _begin_anew(self, shape: tuple[int, ...], where: Any, seeds: jax.Array) -> Observation:
        return self._call(self._host_begin_anew, self._entries(len(seeds)), *where, seeds)

    def _release(self, shape: tuple[int, ...], where: Any) -> jax.Array:
        return self._call(self._host_release, jax.ShapeDtypeStruct(where[0].shape, bool), *where)

    def _call(self, act: Callable[[np.ndarray], Any], returned: Any, *columns: jax.Array) -> Any:
        """`act(table)` on the host; the table's columns [N] are which device this is, and those given."""

        def host(*tables: Any) -> Any:
            # JAX hands over arrays of its own: to compute with them could wait for a thread that waits for this one
            table = np.asarray(tables[0]) if len(tables) == 1 else np.concatenate([np.asarray(x) for x in tables])
            try:
                return act(table)
            except EnvironmentBrokenError as broken:
                self.failed = broken
                raise HostEnvironmentError(str(broken)) from None

        shard = jnp.broadcast_to(run_shard(), columns[0].shape)
        table = jnp.stack([shard, *columns], axis=1).astype(jnp.int32)  # one array: each costs some 30 µs
        rows = max(1, _SMALL // (4 * table.shape[1]))
        return io_callback(host, returned, *(table[i : i + rows] for i in range(0, len(table), rows)))

    def _entries(self, n: int) -> Any:
        rows = {name: self._plan.layout[f"start:{name}"] for name in self._plan.entries}
        entries = {name: jax.ShapeDtypeStruct((n, *shape), dtype) for name, (dtype, shape) in rows.items()}
        return entries if isinstance(self.observation_space, dict) else entries[""]

    # What runs on the host.

    def _host_open(self, devices: int, per_run: int, table: np.ndarray) -> Any:
        self.failed = None  # what an evaluation by itself may have left
        pool = self._take(len(table), devices)
        pool.begin(int(table[0, 0]) * len(table) // per_run, per_run)
        with _LOCK:
            self._pools[pool.number] = pool
        start = self._reset(pool, ALL, table[:, 1])
        return np.full(len(table), pool.number, np.int32), pool.slots, np.zeros(len(table), bool), start

    def _host_begin_anew(self, table: np.ndarray) -> Any:
        return self._reset(*self._find(table), table[:, 4])

    def _reset(self, pool: Pool, slots: np.ndarray | slice, seeds: np.ndarray) -> Any:
        commands = np.zeros((len(seeds), pool.arrays["commands"].shape[1]), np.int32)
        commands[:, SEED] = seeds
        with pool.lock:
            pool.step(slots, RESET, commands)
            return self._seen(pool, "start", slots)

    def _host_step(self, table: np.ndarray) -> Any:
        pool, slots = self._find(table)
        with pool.lock:
            pool.step(slots, STEP, table[:, 3:])
            given = (pool.arrays[name][slots].copy() for name in self._told)
            return self._seen(pool, "reached", slots), self._seen(pool, "start", slots), *given

    def _host_release(self, table: np.ndarray) -> Any:
        pool, _ = self._find(table)
        with _LOCK:
            if len(table) == pool.num_envs and pool not in self._free:
                self._free.append(pool)
        return np.zeros(len(table), bool)

    def _seen(self, pool: Pool, when: str, slots: np.ndarray | slice) -> Any:
        entries = {name: pool.arrays[f"{when}:{name}"][slots].copy() for name in self._plan.entries}
        return entries if isinstance(self.observation_space, dict) else entries[""]

    def _take(self, n: int, devices: int) -> Pool:
        """A pool of n environments, one that nobody uses any more or new; those of several devices share the cores."""
        with _LOCK:
            for pool in self._free:
                if pool.num_envs == n:
                    self._free.remove(pool)
                    del self._pools[pool.number]
                    return pool
            for env in _ENVS:  # what nobody uses would stay for ever
                while env._free:
                    env._pools.pop(env._free.pop().number).close()
            while len(self._pools) >= MOST_POOLS * max(devices, 4):
                self._pools.popitem(last=False)[1].close()
        cores = cpu_cores()
        workers = self._workers or min(max(1, cores // devices), -(-n // self._worth_a_worker))
        return Pool(self._plan, n, workers, awake=workers * devices <= cores)

    def _find(self, table: np.ndarray) -> tuple[Pool, np.ndarray | slice]:
        """The pool and the slots that the first columns name.

        Raises:
            EnvironmentBrokenError: they are not there, or one is to be two.
        """
        numbers, slots = table[:, 1], table[:, 2]
        with _LOCK:
            if pool := self._pools.get(int(numbers[0])):
                self._pools.move_to_end(pool.number)
        whole = pool is not None and table[:, 1:3].tobytes() == pool.named
        if pool is None or not (whole or (numbers == numbers[0]).all()):
            how = "is not in this process, was closed, or serves another run; begin new episodes: they cannot be stored"
            raise EnvironmentBrokenError(self._plan.name, 0, 0, how)
        if whole:
            return pool, ALL
        if len(np.unique(slots)) < len(slots):
            raise pool.broken(0, "is to be in two runs at once; give each run a key of its own")
        return pool, slots


def _as_one_batch(call: Callable[..., Any], shape: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`call(shape, *arrays [N, …])` as a function of one environment's arrays, to which any number of `vmap`s may be
    applied: their axes are `shape`, and together N.
    """

    @jax.custom_batching.custom_vmap
    def apply(*arguments: Any) -> Any:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), arguments)
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), call(shape, *flat))

    @apply.def_vmap
    def _(axis_size: int, in_batched: Any, *arguments: Any) -> Any:
        returned = _as_one_batch(call, (axis_size, *shape))(*all_batched(axis_size, tuple(in_batched), arguments))
        return returned, jax.tree.map(lambda _: True, returned)

    return apply


def _seed(key: jax.Array) -> jax.Array:
    """A seed of Gymnasium's, a whole number in [0, 2³¹): the key's words, mixed as at the end of MurmurHash3.

    `jax.random.bits` would be a loop of some 30 kernels in every step.
    """
    words = jax.random.key_data(key)
    x = words[0] * jnp.uint32(0x9E3779B9) ^ words[-1]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return ((x ^ (x >> 16)) >> 1).astype(jnp.int32)


def _close_all(pools: dict[int, Pool]) -> None:
    while pools:
        pools.popitem()[1].close()


# JAX logs what callbacks raise, with a traceback, beside raising it
logging.getLogger("jax._src.callback").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], HostEnvironmentError))
)
