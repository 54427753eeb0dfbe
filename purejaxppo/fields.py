"""The fields of a config or an algorithm: what each may be, and what is checked."""

import dataclasses
import decimal
import difflib
import math
import numbers
import re
from collections.abc import Collection, Iterable, Mapping
from types import NoneType
from typing import Any, get_args, get_origin

import jax
from flax import struct

from purejaxppo.errors import UsageError

_ELSEWHERE = {  # what Stable-Baselines3, CleanRL, rejax, brax and purejaxrl call what is here called …
    "learning_rate": "lr actor_lr policy_lr step_size critic_learning_rate vf_lr",
    "anneal_learning_rate": "anneal_lr lr_schedule",
    "num_envs": "n_envs n_env num_environments num_parallel_envs",
    "num_steps": "n_steps unroll_length rollout_length rollout_steps horizon steps_per_env num_rollout_steps",
    "total_steps": "total_timesteps num_timesteps n_timesteps timesteps max_steps total_env_steps num_env_steps "
    "max_iterations",
    "num_epochs": "n_epochs update_epochs num_updates_per_batch epochs ppo_epochs n_critic_updates num_sgd_iter",
    "num_minibatches": "n_minibatch n_minibatches num_mini_batch num_mini_batches",
    "minibatch_size": "batch_size mini_batch_size",
    "optimizer": "use_rms_prop rms_prop",
    "optimizer_eps": "adam_eps rms_prop_eps",
    "gamma": "discount discounting discount_factor",
    "gae_lambda": "lambda lam gae_lam td_lambda",
    "clip_eps": "clip_range clip_coef clip_epsilon clip_ratio clipping_epsilon clip_param eps_clip",
    "value_clip_eps": "clip_range_vf clip_vloss vf_clip_param value_clip use_clipped_value_loss",
    "entropy_coef": "ent_coef entropy_cost entropy_coeff entropy_loss_coef ent_coeff",
    "value_coef": "vf_coef vf_coeff value_loss_coef critic_coef",
    "max_grad_norm": "grad_clip max_gradient_norm clip_grad_norm grad_norm",
    "max_kl": "target_kl kl_limit delta trust_region",
    "kl_target": "target_kl d_targ",
    "target_kl": "kl_target",
    "kl_coef": "beta kl_beta",
    "damping": "cg_damping",
    "cg_iterations": "cg_max_steps cg_iters cg_steps",
    "backtrack_factor": "line_search_shrinking_factor backtrack_coeff",
    "max_backtracks": "line_search_max_iter backtrack_iters",
    "normalize_advantages": "normalize_advantage norm_adv standardize_advantages",
    "normalize_observations": "norm_obs normalize_obs normalize_env normalize actor_obs_normalization",
    "normalize_rewards": "norm_reward normalize_reward",
    "reward_scale": "reward_scaling",
    "hidden_sizes": "net_arch hidden_layer_sizes hidden_size layers policy_hidden_layer_sizes policy_kwargs policy "
    "actor_hidden_dims",
    "critic_hidden_sizes": "value_hidden_layer_sizes critic_hidden_dims",
    "activation": "activation_fn act_fn",
    "initialization": "ortho_init orthogonal_init",
    "log_std_init": "init_log_std log_std init_noise_std",
    "action_distribution": "use_sde",
    "noise_steps": "sde_sample_freq",
    "frame_stack": "n_stack num_stack stack",
    "action_repeat": "frame_skip frameskip",
    "eval_interval": "eval_freq",
    "eval_episodes": "n_eval_episodes num_eval_episodes num_evals",
    "checkpoint_interval": "save_freq save_interval checkpoint_freq",
    "num_seeds": "n_seeds seeds",
    "env": "env_id env_name environment gym_id task",
    "algo": "algorithm method agent",
    "reinforce": "vpg pg vanilla_pg policy_gradient",
    "out": "output output_dir out_dir logdir log_dir save_path exp_name experiment_name run_name",
    "tensorboard": "tensorboard_log track_tensorboard",
    "wandb": "track use_wandb",
    "wandb_project": "wandb_project_name project",
    "config": "file config_file",
}


_NOWHERE = {  # what other libraries, or habits, have a setting for, and what is to be done here
    "device cuda use_cuda gpu use_gpu cpu": 'JAX takes the GPU if it was installed by pip install -e ".[cuda]"; '
    "JAX_PLATFORMS=cpu keeps it off; --devices N takes N of them.",
    "save_model save_agent": "each run is saved in its directory, see --out.",
    "capture_video record_video render_mode": "purejaxppo render DIR films a trained policy.",
    "verbose": "progress is shown unless you pass --quiet.",
    "lr_scheduler schedule_type": "--anneal-learning-rate lets it fall to 0.",
}
_OF_RUNS = {"seed", "seeds", "num_seeds", "n_seeds"}


class Hyperparameters(struct.PyTreeNode):
    """A dataclass of an algorithm's numbers and choices, which are given by name."""

    def __new__(cls, *values: Any, **given: Any) -> "Hyperparameters":
        """Raises: UsageError: a name that it does not have, or a value without a name."""
        own = [field.name for field in dataclasses.fields(cls)]
        if values:
            raise UsageError(f"{cls.__name__}({values[0]!r:.40}): name each setting, as in {cls.__name__}(name=…).")
        for unknown in given.keys() - {*own}:
            hint = did_you_mean(unknown, own) or f"its own are: {', '.join(own)}; all others are Config's."
            raise UsageError(f"{unknown!r:.80} is not a setting of {cls.__name__}; {hint}")
        return super().__new__(cls)


def number(default: float | None, interval: str, help: str) -> Any:
    """A hyperparameter that may be traced, so that one compiled program serves many values of it."""
    return struct.field(default=default, metadata={"interval": interval, "help": help, "type": float})


def is_number(field: "dataclasses.Field[Any]") -> bool:
    """Whether a field was declared by `number`."""
    return field.metadata.get("type") is float


def limitless(bound: Any) -> bool:
    """Whether a number is inf and not traced: what it would limit need not be compiled."""
    return not isinstance(bound, jax.Array) and bound == math.inf


def static(default: Any, help: str, *, interval: str = "", choices: Collection[str] = (), **shown: Any) -> Any:
    """A setting that shapes the program (another value is another compile), or an option of a command.

    `shown` is for `cli.flags`: `metavar` and `usual`, what `--help` calls the value and the default; `positional`, a
    value that is given by its place, without a flag; `append`, a flag that may be repeated.
    """
    metadata = {"interval": interval, "choices": choices, "help": help, **shown}
    return struct.field(pytree_node=False, default=default, metadata=metadata)


def check_fields(owner: Any, usual: Mapping[str, Any] | None = None) -> None:
    """Hold a dataclass's values against what its fields declare; `usual` overrides defaults. Raises: UsageError."""
    for field in dataclasses.fields(owner):
        check_field(field, getattr(owner, field.name), (usual or {}).get(field.name, field.default))


def without_none(kind: Any) -> tuple[Any, bool]:
    """`int | None` ↦ int, True; another type ↦ itself, False."""
    parts = get_args(kind)
    return (parts[0], True) if NoneType in parts else (kind, False)


def check_field(field: "dataclasses.Field[Any]", value: Any, usual: Any) -> None:
    """Hold one value against the type, interval and choices that its field declares; `usual` is the way out."""
    choices, interval = field.metadata.get("choices", ()), field.metadata.get("interval", "")
    whole, optional = not is_number(field), usual is None and without_none(field.type)[1]
    if optional and value is None:
        return
    way_out = "leave it out for the default." if optional or usual == "" else f"the default is {usual}."
    if isinstance(value, jax.Array):
        if whole and interval:
            raise UsageError(f"{field.name} = {value!r} is static and cannot be an array; pass a Python number.")
        return  # traced, or one value per run
    if choices and value not in [*choices]:
        raise UsageError(f"{field.name} = {value!r:.80} is not one of: {', '.join(choices)}; {way_out}")
    if isinstance(usual, bool) and not isinstance(value, bool):
        raise UsageError(f"{field.name} = {value!r:.80} must be True or False; {way_out}")
    if isinstance(usual, str) and field.type is str and not isinstance(value, str):
        raise UsageError(f"{field.name} = {value!r:.80} must be a str; {way_out}")
    if not interval:
        return
    if get_origin(without_none(field.type)[0]) is tuple and not isinstance(value, tuple):
        raise UsageError(f"{field.name} = {value!r:.80} must be a tuple; {way_out}")
    for x in value if isinstance(value, tuple) else (value,):
        valid = isinstance(x, numbers.Integral if whole else numbers.Real) and not isinstance(x, bool)
        if not valid or not _within(x, interval):
            kind = "a whole number" if whole else "a number"
            if callable(x):
                way_out = "numbers that change have anneal_learning_rate, anneal and stages."
            if whole and isinstance(x, float) and x.is_integer() and _within(x, interval):
                way_out = f"write {int(x)}."
            raise UsageError(f"{field.name} = {x!r:.80} must be {kind} in {interval}; {way_out}")


def ends_of(interval: str) -> tuple[float, float]:
    """The ends of an interval, written as fields declare it: `(0, inf]`."""
    low, high = map(float, interval[1:-1].split(","))
    return low, high


def _within(x: float, interval: str) -> bool:
    low, high = ends_of(interval)
    above = x >= low if interval[0] == "[" else x > low
    return above and (x <= high if interval[-1] == "]" else x < high)


def whole_number(text: str) -> int:
    """The integer that a text says exactly: `4096`, `1e6`, `1_000_000`. Raises: ValueError: it says none."""
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(f"{text!r} is not a whole number, such as 60000 or 6e4") from None
    if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number, such as 60000 or 6e4")
    return int(number)


def meant(name: str, known: Iterable[str], spelling: bool = True) -> str:
    """Which of the `known` names was meant by one that is none of them; empty if nobody can tell.

    Other libraries' names lead to ours; with `spelling`, so do misspelt ones. Flags may be given as flags.
    """
    names = {each.lstrip("-").replace("-", "_"): each for each in known}
    plain = name.lstrip("-").replace("-", "_").lower()
    ours = [each for each, others in _ELSEWHERE.items() if each in names and plain in others.split()]
    close = ours or (difflib.get_close_matches(plain, names, n=1) if spelling else [])
    return names[close[0]] if close else ""


def without_address(value: Any) -> str:
    """What an object is called in files, the same in each process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


def did_you_mean(name: str, known: Iterable[str], spelling: bool = True) -> str:
    """`meant`, as a question; or what is to be done where there is no such setting here."""
    plain, names = name.lstrip("-").replace("-", "_").lower(), [*known]
    for others, way in _NOWHERE.items():
        if plain in others.split():
            return way
    if plain in _OF_RUNS and not name.startswith("-") and not any("seed" in each for each in names):
        return "seeds are no setting: pass run_experiment(config, seeds=8), or vmap make_train(config) over keys."
    ours = meant(name, names, spelling)
    return f"did you mean {ours}?" if ours else ""
