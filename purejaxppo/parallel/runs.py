"""Runs laid out over devices."""

import hashlib
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from purejaxppo.errors import UsageError, plural
from purejaxppo.keys import as_data, is_key, stay_apart
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.mesh import ENV_AXIS, NET_AXIS, RUN_AXIS
from purejaxppo.parallel.vmapping import in_equal_parts
from purejaxppo.platforms import compiling_for
from purejaxppo.types import TrainState

# LLVM's level 1 instead of 3: PPO on CartPole compiled in 6.4 s instead of 12.0 s and ran as fast (2.7 s, 2.8 s)
QUICK_COMPILATION = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 512}
CPU_RUNS_TOGETHER = 8  # TRPO on CartPole, 256 runs on a core, steps per second: 57k by 8, 52k by 16, 27k all at once


def over_runs(
    fn: Callable[..., Any],
    devices: Sequence[jax.Device] | None = None,
    shared: int = 0,
    donate: bool = False,
    env_shards: int = 1,
    vmap_size: int | None = None,
    net_shards: int = 1,
) -> Any:
    """`fn` for one run, jitted for many: vmapped over the leading axis of its arguments and sharded over devices.

    None is all devices. The last `shared` arguments are the same for all runs; with `donate`, the first is used up.
    Without shards no device waits for another: the program has no collectives. With `env_shards` > 1, so many devices
    share a run, each has its part of the environments, and they average gradients; everything else of a state is on all
    of them. With `net_shards=2`, two devices share it, or two sets of so many: one improves the policy, the other the
    critic, both do everything else, and only last digits differ from what one device learns.

    A device vmaps at most `vmap_size` of its runs at once, None being all, one such lot after the other. With 1 there
    is no `vmap`: each run consists of the very operations, and so has the bits, that it has alone with as many threads;
    so does a device's only run; and so do runs whose keys are not Threefry's, which `vmap` would mix, whatever
    `vmap_size` is. Otherwise its last digits depend on how many are vmapped together.

    Raises:
        UsageError: the devices cannot be shared out so; or when called, if the runs cannot, see `padded_count`.
    """
    devices = jax.devices() if devices is None else devices
    if net_shards not in (1, 2) or len(devices) % (env_shards * net_shards):
        raise UsageError(
            f"devices = {len(devices)} must be a multiple of env_shards × net_shards = {env_shards} × {net_shards}, "
            "and net_shards 1 or 2; pass other devices, or leave the shards out."
        )
    mesh = _mesh(devices, env_shards, net_shards)
    rows = mesh.shape[RUN_AXIS]

    def mapped(*arguments: Any) -> Any:
        own = len(arguments) - shared
        runs = len(jax.tree.leaves(arguments[:own])[0])
        # vmapped alone, PPO takes 1.1×: XLA turns the first layer's gradient round
        if vmap_size == 1 or runs == 1 or not stay_apart(arguments[:own]):
            return jax.lax.map(lambda run: fn(*run, *arguments[own:]), arguments[:own])
        lot = jax.vmap(fn, in_axes=(0,) * own + (None,) * shared)
        return in_equal_parts(lambda part: lot(*part, *arguments[own:]), arguments[:own], runs, vmap_size or runs)

    def many(*arguments: Any) -> Any:
        own = len(arguments) - shared
        runs = len(jax.tree.leaves(arguments[:own])[0])
        if runs != (enough := padded_count(runs, rows, vmap_size)):
            where = f"{rows} devices" if rows == len(devices) else f"{rows} groups of devices"
            where += f", and there in lots of at most {vmap_size}" if vmap_size else ""
            raise UsageError(f"runs = {runs} cannot be divided equally among {where}; train {enough}.")
        specs = (*(_specs(x, env_shards) for x in arguments[:own]), *(PartitionSpec(),) * shared)
        with compiling_for(devices[0].platform):
            results = jax.eval_shape(mapped, *arguments) if env_shards > 1 else None
            placed = jax.shard_map(
                mapped, mesh=mesh, in_specs=specs, out_specs=_specs(results, env_shards), check_vma=False
            )
            return placed(*arguments)

    return jax.jit(
        many,
        donate_argnums=(0,) if donate else (),
        compiler_options=QUICK_COMPILATION if devices[0].platform == "cpu" else None,
    )


def best_vmap_size(on_host: bool, devices: Sequence[jax.Device]) -> int | None:
    """Runs that a device does well to make together: on a CPU as many as its caches hold, elsewhere all.

    And all of those whose environments are on the host, which steps them as one batch.
    """
    return CPU_RUNS_TOGETHER if devices[0].platform == "cpu" and not on_host else None


def padded_count(runs: int, devices: int, vmap_size: int | None = None) -> int:
    """The least number ≥ `runs` with equally many on each device, and there in lots of at most `vmap_size`."""
    each = -(-runs // devices)
    lots = -(-each // (vmap_size or each))
    return devices * lots * -(-each // lots)


def abstract_args(tree: Any, devices: Sequence[jax.Device], env_shards: int = 1, net_shards: int = 1) -> Any:
    """Shapes of arguments of `over_runs`, and where the arrays lie: a program that does not use them cannot tell."""
    mesh = _mesh(devices, env_shards, net_shards)
    specs = _specs(tree, env_shards) if env_shards > 1 else jax.tree.map(lambda _: PartitionSpec(RUN_AXIS), tree)
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree, specs
    )


def _mesh(devices: Sequence[jax.Device], env_shards: int, net_shards: int) -> Mesh:
    grid = np.asarray(devices).reshape(-1, env_shards, net_shards)
    return Mesh(grid, (RUN_AXIS, ENV_AXIS, NET_AXIS), axis_types=(AxisType.Auto,) * 3)


def _specs(tree: Any, env_shards: int) -> Any:
    """Where things lie: all along the axis of runs; what is of single environments in a state, along theirs, too."""
    run, env = PartitionSpec(RUN_AXIS), PartitionSpec(RUN_AXIS, ENV_AXIS)
    if env_shards == 1:
        return run

    def of_state(state: Any) -> Any:
        if not isinstance(state, TrainState):
            return run
        specs: TrainState = jax.tree.map(lambda _: run, state)
        return specs.replace(
            rollout=jax.tree.map(lambda _: env, state.rollout),
            reward_normalizer=specs.reward_normalizer.replace(discounted_return=env),
        )

    return jax.tree.map(of_state, tree, is_leaf=lambda x: isinstance(x, TrainState))


def own_runs(runs: int, devices: Sequence[jax.Device], size: int) -> slice:
    """Which of so many runs lie on this process's devices, if only in part; each run on a group of `size` devices."""
    mine = [i // size for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    each = runs * size // len(devices)
    return slice(mine[0] * each, (mine[-1] + 1) * each)


def check_processes(devices: Sequence[jax.Device], size: int, runs: int, vmap_size: int | None) -> None:
    """Warns of processes that have nothing to do, as each device has equally many runs.

    Raises:
        UsageError: a process would have no device, or a part of one run and other runs too.
    """
    groups = [{device.process_index for device in devices[i : i + size]} for i in range(0, len(devices), size)]
    each = padded_count(runs, len(groups), vmap_size) // len(groups)
    busy = len(set().union(*groups[: -(-runs // each)]))
    if busy < (count := group().count):
        places = plural(len(devices), "device") if size == 1 else plural(len(groups), "group") + f" of {size} devices"
        what = f"{plural(runs, 'run')} on {places}, {each} on each, are for {busy} of {count} processes"
        way = f"start {busy}, train more seeds, choose other --devices, or let devices share each run: --mesh env=…"
        if len(set().union(*groups)) < count:
            raise UsageError(f"{what}; {way}.")
        if group().leads:
            warnings.warn(f"{what}, and the others have nothing to do; {way}", stacklevel=2)
    if any(len(own) > 1 and own & other for own in groups for other in groups if own is not other):
        raise UsageError(
            f"{size} devices per run are neither a part nor a multiple of each process's; choose another --mesh."
        )


def on_host(tree: Any) -> Any:
    """A tree of arrays [runs, …] on the host: of several processes' runs this process's own, [own_runs, …].

    Where several processes share a run, all of them must ask for it.
    """
    shared = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    if not shared:
        return jax.device_get(tree)
    sharding: Any = shared[0].sharding
    grid = sharding.mesh.devices
    if any(len({device.process_index for device in group.flat}) > 1 for group in grid):
        whole = NamedSharding(sharding.mesh, PartitionSpec(RUN_AXIS))
        tree = jax.jit(_same, out_shardings=whole)(tree)
    return jax.tree.map(lambda x: _own_part(x, own_runs(x.shape[0], [*grid.flat], grid[0].size)), tree)


def _same(tree: Any) -> Any:  # a function of the module, as another one would be compiled anew at each call
    return tree


def _own_part(x: jax.Array, own: slice) -> Any:
    if is_key(x):
        return jax.random.wrap_key_data(_own_part(jax.random.key_data(x), own), impl=jax.random.key_impl(x))
    part = np.empty((own.stop - own.start, *x.shape[1:]), x.dtype)
    for shard in x.addressable_shards:
        runs, *others = shard.index
        first, last, _ = runs.indices(x.shape[0])
        part[(slice(first - own.start, last - own.start), *others)] = np.asarray(shard.data)
    return part


def laid_out(tree: Any, like: Any) -> Any:
    """Arrays of the host, placed as those of a tree `like` theirs, of which each process has the whole."""

    def place(x: Any, sharding: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        if is_key(x):
            data = np.asarray(jax.random.key_data(x))
            return jax.random.wrap_key_data(_from_host(data, sharding), impl=jax.random.key_impl(x))
        return _from_host(np.asarray(x), sharding)

    return jax.tree.map(lambda x, model: place(x, model.sharding), tree, like)


def _from_host(x: np.ndarray, sharding: Any) -> jax.Array:
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def differing_replica(tree: Any) -> str | None:
    """The first array of which two devices hold different bits, though they should be copies; None if there is none.

    Where several processes train together, all of them must ask.
    """
    held = []  # here: the path of an array, which part of it, and its digest
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for shard in as_data(x).addressable_shards:
            held.append((name, str(shard.index), hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()))
    first: dict[tuple[str, str], str] = {}
    for name, part, digest in itertools.chain(*group().all_of(held)):
        if first.setdefault((name, part), digest) != digest:
            return name
    return None
