"""The search spaces that come with each algorithm, as plain data; `ABBREVIATIONS` says what their sources are.

All are numbers, so that a study is one program. Static settings can be added in a file, each as a list of choices.
"""

from typing import Any

ABBREVIATIONS = """\
rl-zoo: rl-baselines3-zoo, rl_zoo3/hyperparams_opt.py
WMOP: recommended in What Matters In On-Policy Reinforcement Learning? (Andrychowicz et al., 2020, arXiv:2006.05990)"""

_GAMMA = {
    "low": 0.95,
    "high": 0.9999,
    "scale": "one-minus-log",
    "source": "rl-zoo: 0.97 … 0.9999 by log(1 - γ); WMOP: begin at 0.99, and tune it for each environment",
}
_LAMBDA = {
    "low": 0.8,
    "high": 0.9999,
    "scale": "one-minus-log",
    "source": "rl-zoo: 0.9 … 0.9999 by log(1 - λ); WMOP: 0.9",
}
_ADAM = {
    "low": 1e-5,
    "high": 1e-2,
    "scale": "log",
    "source": "rl-zoo: 1e-5 … 2e-3; WMOP: 3e-4 is safe; up to 1e-2, as purejaxrl uses 5e-3 with 64 environments",
}
_CRITIC = {**_ADAM, "source": "the critic's; rl-zoo: 1e-5 … 1, which ends at 1e-2 here"}
_ENTROPY = {"low": 1e-8, "high": 0.1, "scale": "log", "source": "rl-zoo"}
_CLIP_NORM = {"low": 0.3, "high": 5.0, "scale": "log", "source": "rl-zoo: 0.3 … 2; WMOP: of little influence"}
_MAX_KL = {"low": 1e-3, "high": 0.1, "scale": "log", "source": "rl-zoo (target_kl)"}
_DAMPING = {"low": 0.01, "high": 0.5, "scale": "log", "source": "rl-zoo (cg_damping)"}

_FIRST_ORDER = {"learning_rate": _ADAM, "gamma": _GAMMA, "entropy_coef": _ENTROPY, "max_grad_norm": _CLIP_NORM}
_NATURAL = {"max_kl": _MAX_KL, "damping": _DAMPING, "learning_rate": _CRITIC, "gamma": _GAMMA, "gae_lambda": _LAMBDA}

SPACES: dict[str, dict[str, dict[str, Any]]] = {  # algorithm → setting → range and source
    "reinforce": _FIRST_ORDER,
    "a2c": {**_FIRST_ORDER, "gae_lambda": _LAMBDA},
    "a2c-tr": {
        **_FIRST_ORDER,
        "gae_lambda": _LAMBDA,
        "kl_slope": {"low": 0.1, "high": 10.0, "scale": "log", "source": "ours, around the default"},
        "average_decay": {
            "low": 0.9,
            "high": 0.999,
            "scale": "one-minus-log",
            "source": "ours, around the 0.99 of ACER (Wang et al., 2016)",
        },
    },
    "npg": _NATURAL,
    "trpo": _NATURAL,
    "ppo": {
        **_FIRST_ORDER,
        "gae_lambda": _LAMBDA,
        "clip_eps": {"low": 0.1, "high": 0.5, "source": "rl-zoo: 0.1 … 0.4; WMOP: begin at 0.25, try lower and higher"},
    },
    "ppo-penalty": {
        **_FIRST_ORDER,
        "gae_lambda": _LAMBDA,
        "kl_target": {"low": 0.003, "high": 0.03, "scale": "log", "source": "PPO (Schulman et al., 2017), table 1"},
    },
    "cem": {
        "elite_fraction": {"low": 0.05, "high": 0.5, "source": "ours, around Rubinstein's 0.1"},
        "initial_std": {"low": 0.05, "high": 2.0, "scale": "log", "source": "ours, around the default"},
        "extra_std": {"low": 0.01, "high": 1.0, "scale": "log", "source": "ours, around the default"},
    },
    "cma-es": {"initial_sigma": {"low": 0.02, "high": 2.0, "scale": "log", "source": "ours, around the default"}},
}
