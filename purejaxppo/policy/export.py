"""A trained policy as one file, from raw observation to action, checked against the policy itself."""

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo._version import __version__
from purejaxppo.agent import Agent
from purejaxppo.envs.base import BaseEnv, host_failures
from purejaxppo.errors import UsageError
from purejaxppo.keys import EXPORT
from purejaxppo.policy.acting import stepper, unseen
from purejaxppo.policy.load import Trained, as_trained
from purejaxppo.precision import single_precision
from purejaxppo.presets import settings_of
from purejaxppo.rollout import begin_episodes, rollout
from purejaxppo.rundir.files import check_out, replacing, to_json
from purejaxppo.spaces import Box, MultiBinary, Space

OBSERVATIONS, TOLERANCE = 1000, 1e-5  # of the check
_EPISODES = 10  # that the first half of the observations is from
# obs [B, *O], or a dict of them, and hidden state [B, H], or () -> action [B, *A], float32 or integer, and hidden state
Act = Callable[[Any, Any], tuple[np.ndarray, Any]]


@single_precision
def export_policy(trained: Trained | str | Path, out: str | Path) -> float:
    """Write the greedy policy of a seed, or of a run's best, to `out`: `.onnx` for ONNX Runtime, `.jax` for JAX.

    A `.jax` file is read by `jax.export.deserialize`.

    The file maps observations as the environment gives them to what it receives: normalisation and clipping are in it,
    as are the numbers that a Gymnasium space starts at, and the rounding of a Box of integers (in the file's float32).
    Nested dictionaries and tuples are one flat dictionary, of entries `a.b`; what the policy does not see is left out.
    A recurrent policy's takes the hidden state, too, and returns the next; an episode begins with one of zeros, and a
    warning says so where the policy's own begins otherwise. The file is complete and checked, or not written; what was
    at `out` before then stays. Matrices are multiplied in full float32, also where accelerators round them by default.
    Returns the `largest_difference` that the check found.

    Raises:
        UsageError: `out` cannot be (see `check_name`), or the file's actions are not the policy's.
        HostEnvironmentError: an environment on the host failed.
    """
    out, trained = Path(out), as_trained(trained)
    check_name(out)
    env = trained.config.environment
    with env, host_failures(env, [trained.seed]), jax.default_matmul_precision("highest"):
        obs = observations(trained)
        # [1000, H] within ±1, as hidden states are but for an LSTM's cell; () if the policy has none
        rng, initial = np.random.default_rng(trained.seed), Agent.of(trained.config).policy.initial_hidden(obs)
        hidden = jax.tree.map(lambda x: rng.uniform(-1.0, 1.0, x.shape).astype(x.dtype), initial)
        if any(np.any(x != 0) for x in jax.tree.leaves(initial)):
            text = f"{out}: this policy's hidden state does not begin with zeros; give the file its `initialize_carry`."
            warnings.warn(text, stacklevel=2)
        given, first = as_given(env, obs)
        if isinstance(given, Mapping):
            left_out = unseen(env, trained.config.policy_obs)
            given = {name: x for name, x in given.items() if name not in left_out}
        content, act = FORMATS[out.suffix][1](trained, given, hidden)
        action, carried = act(given, hidden)
        difference = largest_difference(trained, obs, action - first, carried, hidden)
    if not difference <= TOLERANCE:
        raise UsageError(f"{out}: actions are off by {difference:.2g} > {TOLERANCE}; not written; try another suffix.")
    with replacing(out) as draft:
        draft.write_bytes(content)
    return difference


def check_name(out: Path) -> None:
    """Raises: UsageError: no such format, a package that it needs is missing, or no file can stand there."""
    check_out(out, FORMATS)
    try:
        for package in FORMATS[out.suffix][0]:
            importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f'out = {str(out)!r} needs an extra ({error}); pip install "purejaxppo[onnx]".') from error


def observations(trained: Trained) -> Any:
    """[1000, *O]: 500 that the policy meets in fresh episodes, and these disturbed, slightly to wildly.

    Integers and masks are left as they are.
    """
    agent, half, rng = Agent.of(trained.config), OBSERVATIONS // 2, np.random.default_rng(trained.seed)
    env, policy = agent.env, agent.make_policy(trained.state)

    @jax.jit
    def explore(key: jax.Array) -> Any:
        start = begin_episodes(key, env, _EPISODES)
        start = start._replace(hidden=agent.policy.initial_hidden(start.obs))
        end, met, _ = rollout(key, env, policy, start, half // _EPISODES)
        jax.vmap(env.release)(end.env)
        return met.obs

    def double(found: jax.Array, space: Space) -> np.ndarray:
        met = disturbed = np.asarray(found).reshape(-1, *space.shape)
        if isinstance(space, Box):
            scale = np.geomspace(0.1, 10.0, half).reshape(-1, *(1 for _ in space.shape))
            disturbed = np.clip(met + rng.normal(scale=scale, size=met.shape), space.low, space.high)
        return np.concatenate([met, disturbed]).astype(met.dtype)

    found, space = explore(jax.random.fold_in(trained.state.key, EXPORT)), env.observation_space
    if isinstance(space, Mapping):
        return {name: double(found[name], space[name]) for name in space}
    return double(found, space)


def as_given(env: BaseEnv, obs: Any) -> tuple[Any, Any]:
    """Our observations [N, O] as the environment gives them, entry by entry, and the action that is our 0."""
    shifted = env.from_gymnasium(jax.tree.map(np.zeros_like, obs))  # 0 becomes minus what a space starts at
    given = jax.tree.map(lambda x, low: x - low if np.issubdtype(x.dtype, np.integer) else x, obs, shifted)
    first = np.zeros(env.action_space.shape, np.float32 if isinstance(env.action_space, Box) else np.int32)
    if not isinstance(env.action_space, Box):  # a box has no number that it starts at
        first = np.asarray(env.to_gymnasium(first), np.int32)
    return jax.tree.map(np.asarray, given), first


def file_function(trained: Trained) -> Callable[[Any, Any], tuple[jax.Array, Any]]:
    """What a file holds: (obs as the environment gives it, hidden) ↦ action as that receives it, hidden."""
    env, step, like = trained.config.environment, _exact_stepper(trained), trained.state.rollout.obs

    def act(given: Any, hidden: Any) -> tuple[jax.Array, Any]:
        if isinstance(given, Mapping):
            batch = next(iter(given.values())).shape[:1]
            hid = {name: jnp.zeros((*batch, *like[name].shape[1:]), like[name].dtype) for name in {*like} - {*given}}
            given = {**hid, **given}
        action, hidden = step(env.from_gymnasium(given), None, hidden)
        return env.to_gymnasium(action), hidden

    return act


def _exact_stepper(trained: Trained) -> Callable[..., tuple[jax.Array, Any]]:
    """The policy with full float32 in its products, whatever the run's `precision`."""
    return stepper(trained.config.replace(precision="highest"), trained.state)


def largest_difference(trained: Trained, obs: Any, action: np.ndarray, carried: Any = (), hidden: Any = ()) -> float:
    """By how much actions [N, A] and hidden states are not the policy's; infinite if their shape or type is not.

    Continuous: max |a - μ| / max(1, max |μ|), of whole numbers by how much more than ½. Discrete, for each factor:
    max (ℓ* - ℓ(a)) / max(1, max |ℓ*|), ℓ* being the highest of the logits ℓ: 0 where the actions are equal, and tiny
    where two are as good as each other; infinite where they differ and the distribution has no logits.
    """
    step, env = _exact_stepper(trained), trained.config.environment
    expected, expected_hidden = jax.tree.map(np.asarray, step(obs, None, hidden))
    if (action.shape, action.dtype) != (expected.shape, expected.dtype):
        return np.inf
    if isinstance(env.action_space, Box):
        off = np.abs(action - expected)
        if np.any(expected != np.asarray(jax.jit(env.to_gymnasium)(expected))):  # it is rounded there
            off = np.where(action == np.rint(action), np.maximum(off - 0.5, 0.0), np.inf)
        off = off / np.maximum(1.0, np.max(np.abs(expected)))
    else:
        off = _off_in_logits(trained, obs, hidden, action, expected)
    pairs = zip(jax.tree.leaves(carried), jax.tree.leaves(expected_hidden), strict=True)
    return float(np.max([np.max(off), *(np.max(np.abs(np.subtract(a, b, dtype=np.float64))) for a, b in pairs)]))


def _off_in_logits(trained: Trained, obs: Any, hidden: Any, action: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """`largest_difference` of discrete actions, for each of them."""
    distribution, _ = jax.jit(Agent.of(trained.config).make_policy(trained.state))(obs, hidden)
    if not hasattr(distribution, "logits"):  # one of the user's own
        return np.where(action == expected, 0.0, np.inf)
    logits = np.asarray(distribution.logits)
    if isinstance(trained.config.environment.action_space, MultiBinary):
        logits = np.stack([np.zeros_like(logits), logits], axis=-1)
    best = np.max(logits, axis=-1)
    chosen = np.max(np.where(action[..., None] == np.arange(logits.shape[-1]), logits, -np.inf), axis=-1)
    return np.abs(np.where(action == expected, best, chosen) - best) / np.maximum(1.0, np.max(np.abs(best)))


def to_onnx(trained: Trained, given: Any, hidden: Any) -> tuple[bytes, Act]:
    """An ONNX model, `obs` to `action`, whose metadata say what was trained; and what ONNX Runtime makes of it.

    A dictionary observation has one input for each entry, of its name. A recurrent policy has the inputs `hidden_0`, …
    and the outputs `next_hidden_0`, …: one of a GRU, cell and output of an LSTM. `given` and `hidden` are examples.
    """
    import jax2onnx
    import onnxruntime

    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # it warns of the converter's intermediate values
    leaves, structure = jax.tree.flatten((given, hidden))
    memory = [f"hidden_{i}" for i in range(len(jax.tree.leaves(hidden)))]
    names = [*(sorted(given) if isinstance(given, Mapping) else ["obs"]), *memory]  # as JAX sorts the leaves of a dict
    results = ["action", *(f"next_{name}" for name in memory)]
    if len({*names, *results}) < len(names) + len(results):
        twice = next(name for name in names if [*names, *results].count(name) > 1)
        raise UsageError(f"the observation's {twice!r} is a name that an ONNX file gives to another; export to .jax.")
    inputs = [jax.ShapeDtypeStruct(("B", *x.shape[1:]), x.dtype) for x in leaves]
    act = file_function(trained)
    model = jax2onnx.to_onnx(
        lambda *leaves: jax.tree.leaves(act(*jax.tree.unflatten(structure, leaves))),
        inputs,
        opset=17,
        input_names=names,
        output_names=results,
    )
    about = settings_of(trained.config) | trained._asdict() | {"purejaxppo": __version__}
    for key in ("algo", "env", "seed", "env_steps", "purejaxppo"):
        model.metadata_props.add(key=key, value=str(to_json(about[key])))
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(given: Any, hidden: Any) -> tuple[np.ndarray, Any]:
        action, *carried = session.run(results, dict(zip(names, jax.tree.leaves((given, hidden)), strict=True)))
        return action, carried

    return content, run


def to_stablehlo(trained: Trained, given: Any, hidden: Any) -> tuple[bytes, Act]:
    """StableHLO in a flatbuffer, for all of JAX's platforms; and what JAX makes of it. Both are examples.

    `call(obs)` gives the action; of a recurrent policy, `call(obs, hidden)` the action and the next hidden state.
    """
    from jax import export

    act, recurrent = file_function(trained), bool(jax.tree.leaves(hidden))
    function = jax.jit(act if recurrent else lambda given: act(given, ())[0])
    examples = (given, hidden) if recurrent else (given,)
    batch = export.symbolic_shape("B")
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype), examples)
    content = bytes(export.export(function, platforms=("cpu", "cuda", "rocm", "tpu"))(*inputs).serialize())
    restored = export.deserialize(bytearray(content))

    def run(given: Any, hidden: Any) -> tuple[np.ndarray, Any]:
        if recurrent:
            return jax.tree.map(np.asarray, restored.call(given, hidden))
        return np.asarray(restored.call(given)), ()

    return content, run


FORMATS = {".onnx": (("jax2onnx", "onnxruntime"), to_onnx), ".jax": ((), to_stablehlo)}
