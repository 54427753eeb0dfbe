"""How fast is PPO in Gymnasium's own environments, against Stable-Baselines3? In turn, in alternating rounds.

    python benchmarks/throughput_host.py            # about ten minutes on two quiet cores

Stable-Baselines3 lives in a virtual environment of its own (made at first use), with all environments in its process
("dummy") and with a process each ("subproc"); it is held to the faster of the two. Every measurement is a process of
its own and trains one seed for the same number of steps, CleanRL's settings in both.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from throughput import machine
from venvs import default_root, interpreter, told

HERE = Path(__file__).parent
TASKS = {("CartPole-v1", 4): 40_000, ("LunarLander-v3", 16): 60_000, ("Hopper-v5", 8): 40_000}  # steps of training
PEERS = {"ours": ("ours.py", []), "dummy": ("sb3_host_ppo.py", ["dummy"]), "subproc": ("sb3_host_ppo.py", ["subproc"])}


def measure(env: str, envs: int, steps: int, name: str) -> dict[str, Any]:
    """One process, one line of JSON."""
    script, extra = HERE / "peers" / PEERS[name][0], PEERS[name][1]
    python = interpreter(script, default_root(), cuda=False)
    named = f"gymnasium/{env}" if name == "ours" else env
    command = [str(python), str(script), "--env", named, "--envs", str(envs), "--steps", str(steps), *extra]
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or name == "ours"}
    return told(command, own)


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """JSON, and a table of medians in Markdown."""
    lines = [
        "# PPO in Gymnasium's environments: steps per second\n",
        "Made by `python benchmarks/throughput_host.py`: one seed, medians over rounds; the ratio is the median over",
        "rounds of ours against the faster of Stable-Baselines3's two.\n",
        "| environment | environments | rounds | ours | SB3, one process | SB3, a process each | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for env, envs in TASKS:
        speeds = {
            name: [r["steps_per_second"] for r in rows if (r["env"], r["envs"], r["peer"]) == (env, envs, name)]
            for name in PEERS
        }
        rounds = min(map(len, speeds.values()))
        if rounds:
            ratios = [ours / max(one, each) for ours, one, each in zip(*speeds.values(), strict=False)]
            ours, one, each = (statistics.median(x) for x in speeds.values())
            ratio = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} … {max(ratios):.2f})"
            lines.append(f"| {env} | {envs} | {rounds} | {ours:,.0f} | {one:,.0f} | {each:,.0f} | {ratio} |")
    out.with_suffix(".json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only environments whose name contains this")
    args, stored = parser.parse_args(), HERE / "results" / "throughput_host.json"
    known = json.loads(stored.read_text())["rows"] if args.only and stored.exists() else []
    rows = [row for row in known if args.only not in row["env"]]
    for number in range(1, args.rounds + 1):
        for (env, envs), steps in TASKS.items():
            for name in PEERS if args.only in env else ():
                row = {"round": number, "env": env, "peer": name} | measure(env, envs, steps, name)
                rows.append(row)
                print(f"round {number} {env} {name}: {row['steps_per_second']:,.0f} steps/s", flush=True)
                write(rows, HERE / "results" / "throughput_host")
    return 0


if __name__ == "__main__":
    sys.exit(main())
