"""What a GPU or a TPU would run, judged without one: kernels, memory and estimated time of an update.

    python benchmarks/gpu_program.py                                  # ours for all chips, an hour on two cores
    python benchmarks/gpu_program.py --chips h100 --cases ppo trpo    # two programs, for one chip
    python benchmarks/gpu_program.py --by ours-kernels                # with our kernels, on the chips that have them
    python benchmarks/gpu_program.py --chips h100 --by purejaxrl rejax --purejaxrl DIR    # theirs, DIR being a checkout

XLA compiles the real training programs for a described chip (`peers/chip.py`), in environments of their own, made at
first use (--venvs). Nothing is run. The optimized HLO says what would be launched (`hlo_cost.py`).

THE TIMES ARE ESTIMATES. A kernel is taken to last as long as the greatest of three: its launch (2 µs, and 5 µs), its
bytes at the memory's bandwidth, its FLOPs at the chip's peak; all are summed. For a kernel of our own, the third is
what its machine code would take on the SMs that its blocks occupy, at least and at most (`sass_cost.py`). Caches,
overlap, command buffers, autotuning and what keeps a kernel of XLA's from the peak are left out. A TPU runs a whole
program by itself: there a launch costs nothing. Times can be compared with each other, not with a clock. Rows are added
to `results/gpu_program.json`.
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hlo_cost import Kernel, Loop, Program
from peers.chip import CUDA, SETTINGS
from sass_cost import Work, kernels_in, triton_kernels
from venvs import PeerError, default_root, interpreter, told

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu_program.json"
LAUNCHES = (2e-6, 5e-6)  # seconds
COMPILERS = ["jax-cuda12-plugin==0.10.2", "jax-cuda12-pjrt==0.10.2"]  # for the peers' environments


class Chip(NamedTuple):
    """As the makers' data sheets have it."""

    bandwidth: float  # bytes per second
    matmul: float  # FLOP/s of float32 matrix products at JAX's default precision: TF32 on a GPU, bfloat16 on a TPU
    exact_matmul: float  # at the highest
    other: float  # FLOP/s of all else; of the TPUs' vector units from lanes × clock
    memory: float  # bytes


CHIPS = {
    "h100": Chip(3.35e12, 494e12, 66.9e12, 66.9e12, 80e9),
    "h200": Chip(4.8e12, 494e12, 66.9e12, 66.9e12, 141e9),
    "v5e": Chip(0.819e12, 197e12, 33e12, 6e12, 16e9),
    "v6e": Chip(1.64e12, 918e12, 153e12, 12e12, 32e9),
}


class Case(NamedTuple):
    env: str
    algo: str
    seeds: int
    envs: int
    num_steps: int
    settings: Mapping[str, Any] = MappingProxyType({})
    updates: int = 4  # that the loop over them be one; no count depends on it


CASES = {
    "ppo": Case("CartPole-v1", "ppo", 2048, 4, 128),
    "trpo": Case("CartPole-v1", "trpo", 2048, 4, 512),
    "breakout": Case("Breakout-MinAtar", "ppo", 300, 64, 128),
    "one": Case("CartPole-v1", "ppo", 1, 4096, 128),
}
OURS = {"ours": "xla", "ours-kernels": "auto"}  # what each has for `kernels`
SCRIPTS = dict.fromkeys(OURS, "ours_on_chip.py") | {"purejaxrl": "purejaxrl_ppo.py", "rejax": "rejax_ppo.py"}
PHASES = ("line_search", "conjugate_gradient", "shuffle", "minibatch", "rollout", "advantages")  # innermost first


def compiled(case: Case, chip: str, devices: int, by: str, args: argparse.Namespace) -> dict[str, Any]:
    """A program, compiled in a process of its own: what that prints, `hlo`, and `own`, its kernels that are ours.

    Raises:
        PeerError: it could not be compiled.
    """
    script, ours = HERE / "peers" / SCRIPTS[by], by.startswith("ours")
    python = args.python or interpreter(script, args.venvs, False, [] if ours else COMPILERS)
    with tempfile.TemporaryDirectory() as directory:
        hlo = Path(directory) / "hlo.gz"
        command = [str(python), str(script), "--chip", chip, "--hlo", str(hlo), "--env", case.env, "--algo", case.algo]
        command += ["--seeds", str(case.seeds), "--envs", str(case.envs)]
        if ours:
            command += ["--num-steps", str(case.num_steps), "--updates", str(case.updates), "--devices", str(devices)]
            command += ["--settings", json.dumps({**case.settings, "kernels": OURS[by]})]
        else:
            command += ["--steps", str(case.updates * case.envs * case.num_steps)]
        if by == "purejaxrl":
            command += ["--checkout", str(args.purejaxrl.resolve())]
        environment = os.environ | SETTINGS | ({"PYTHONPATH": str(HERE.parent)} if ours else {})
        environment["XLA_FLAGS"] += f" --xla_dump_to={directory}" if by == "ours-kernels" else ""
        found = told(command, environment) | {"hlo": gzip.decompress(hlo.read_bytes()).decode()}
        names, tools = triton_kernels(found["hlo"]), found.pop("tools", {})
        if names and len(tools) < 2:
            raise PeerError("our kernels are judged with ptxas and nvdisasm: nvidia-cuda-nvcc-cu12 and triton")
        works = kernels_in(Path(directory), [x for x, _ in names.values()], **tools) if names else {}
        return found | {"own": {instruction: (works[x], grid) for instruction, (x, grid) in names.items()}}


def judged(
    text: str, case: Case, chip: str, own: Mapping[str, tuple[Work, int]] = MappingProxyType({})
) -> dict[str, Any]:
    """What one update consists of, by phase and by loop; `own` has the kernels that are ours."""
    program = Program(text)
    kernels = list(program.kernels(program.entry))
    launches = Counter[str]()
    for kernel in kernels:
        for name in kernel.loops:
            launches[name] += kernel.launches
    over_updates = [x for x in program.loops.values() if x.trips == case.updates and x.starts == 1]
    top = max(over_updates, key=lambda x: launches[x.name])
    inside = [x for x in kernels if top.name in x.loops]
    phases: dict[str, Counter[str]] = defaultdict(Counter)
    for kernel in inside:
        times = kernel.launches / case.updates
        part = phases[phase_of(kernel, program.loops, case)]
        work, grid = own.get(kernel.instruction.name, (None, 0))
        matmuls = grid * work.matrix_flops if work else kernel.matmul_flops + kernel.exact_flops
        part.update(launches=times, bytes=times * kernel.bytes, matmul_flops=times * matmuls)
        part.update(other_flops=times * (grid * work.other_flops if work else kernel.other_flops))
        for launch, seconds in zip(LAUNCHES, work.seconds(grid) if work else (0.0, 0.0), strict=True):
            part[f"milliseconds_{launch * 1e6:.0f}us"] += 1e3 * times * max(duration(kernel, chip, launch), seconds)
    totals = sum(phases.values(), Counter[str]())
    loops = [
        {
            "trips": x.trips,
            "inside_loops": len(x.inside) - 1,
            "phase": phase_of_loop(x),
            "iterations": x.starts / case.updates * (x.trips or 1),
            "kernels_per_iteration": launches[x.name] / (x.starts * (x.trips or 1)),
        }
        for x in program.loops.values()
        if top.name in x.inside
    ]
    return {
        "kernels": totals["launches"],
        "iterations": sum(x["iterations"] for x in loops),
        "waits": program.waits / case.updates,
        "host_operations": program.host_operations(),
        "totals": totals,
        "phases": phases,
        "loops": loops,
        "own": {
            name: {"grid": grid, "milliseconds": [1e3 * t for t in work.seconds(grid)], **work._asdict()}
            for name, (work, grid) in own.items()
        },
    }


def duration(kernel: Kernel, chip: str, launch: float) -> float:
    """Seconds of one launch, estimated."""
    of = CHIPS[chip]
    work = kernel.matmul_flops / of.matmul + kernel.exact_flops / of.exact_matmul + kernel.other_flops / of.other
    return max(launch if chip in CUDA else 0.0, kernel.bytes / of.bandwidth, work)


def phase_of(kernel: Kernel, loops: dict[str, Loop], case: Case) -> str:
    """Where in an update a kernel belongs, by the scopes that we name; in a peer's program by its loops."""
    names = [kernel.instruction.op_name, *(loops[name].op_name for name in reversed(kernel.loops))]
    for phase in PHASES:
        if any(_within(phase, name) for name in names):
            return phase
    if any(loops[name].trips == case.num_steps for name in kernel.loops):
        return "loops over steps"
    return "other"


def phase_of_loop(loop: Loop) -> str:
    return next((phase for phase in PHASES if _within(phase, loop.op_name)), "other")


def _within(scope: str, op_name: str) -> bool:
    return any(part in (scope, f"vmap({scope})") for part in op_name.split("/"))


def described(row: dict[str, Any]) -> str:
    """One program, as it is printed."""
    where = f"{row['case']} by {row['by']} for {row['devices']} × {row['device']}"
    if "error" in row:
        return f"{where}: {row['error']}"
    totals = row["totals"]
    lines = [
        f"{where}: {row['kernels']:,.0f} kernels an update, {row['iterations']:,.0f} iterations of inner loops, "
        f"{row['waits']:,.0f} waits of the host, temporary memory {row['temporary_bytes'] / 1e9:,.2f} GB; estimated "
        f"{totals['milliseconds_2us']:,.1f} to {totals['milliseconds_5us']:,.1f} ms"
    ]
    for name, x in sorted(row["phases"].items(), key=lambda item: -item[1]["launches"]):
        lines.append(
            f"  {name:18} {x['launches']:8,.0f} kernels {x['bytes'] / 1e9:8,.1f} GB {x['matmul_flops'] / 1e9:8,.0f} + "
            f"{x['other_flops'] / 1e9:5,.0f} GFLOP {x['milliseconds_2us']:7,.1f} to {x['milliseconds_5us']:,.1f} ms"
        )
    for x in row["loops"]:
        lines.append(
            f"  {'  ' * x['inside_loops']}loop of {x['trips'] or 'some'} ({x['phase']}), {x['iterations']:,.0f} "
            f"iterations: {x['kernels_per_iteration']:,.1f} kernels each"
        )
    return "\n".join(lines + [f"  on the host: {', '.join(row['host_operations'])}"] * bool(row["host_operations"]))


def table(rows: list[dict[str, Any]]) -> str:
    """All programs, as Markdown."""
    lines = [
        "Estimates, from programs compiled for chips that were not there (`benchmarks/gpu_program.py`): nothing here",
        "was measured on a GPU or a TPU. Per update, all seeds together; times with 2 and with 5 µs a launch, on a TPU",
        "with none. `ours-kernels` has our own kernels for rollout, minibatches and Fisher products; its times are at",
        "least and at most what their machine code takes on the chip's SMs (`benchmarks/sass_cost.py`).",
        "",
        "| program | by | chip | kernels | rollout | minibatches | other | inner iterations | temporary memory | moved "
        "| estimated ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        begin = f"| {row['program']} | {row['by']} | {row['devices']} × {row['chip']} |"
        if "error" in row:
            lines.append(f"{begin} {row['error']} | | | | | | | |")
            continue
        parts = {name: x["launches"] for name, x in row["phases"].items()}
        rollout, minibatch = parts.get("rollout", 0.0), parts.get("minibatch", 0.0)
        split = [rollout, minibatch, row["kernels"] - rollout - minibatch] if row["by"] in OURS else [None] * 3
        figures = [row["kernels"], *split, row["iterations"]]
        totals = row["totals"]
        lines.append(
            " | ".join([begin.rstrip(" |"), *("" if x is None else f"{x:,.0f}" for x in figures)])
            + f" | {row['temporary_bytes'] / 1e9:,.2f} GB | {totals['bytes'] / 1e9:,.0f} GB | "
            f"{totals['milliseconds_2us']:,.1f} … {totals['milliseconds_5us']:,.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--devices", nargs="+", type=int, default=[1], help="chips that share the seeds")
    parser.add_argument("--settings", type=json.loads, default={}, help="more of our Config, as JSON")
    parser.add_argument("--label", default="", help="what the rows with these settings are called")
    parser.add_argument("--by", nargs="+", default=["ours"], choices=SCRIPTS)
    parser.add_argument("--purejaxrl", type=Path, help="its checkout")
    parser.add_argument("--venvs", type=Path, default=default_root())
    parser.add_argument("--python", type=Path, help="with all that is needed, instead of an environment made for it")
    parser.add_argument("--hlo", type=Path, help="keep the HLO in this directory")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    failed = False
    for chip, devices, name, by in (
        (c, d, n, b) for c in args.chips for d in args.devices for n in args.cases for b in args.by
    ):
        case = CASES[name]._replace(settings=args.settings)
        if by not in OURS and (case.algo != "ppo" or devices > 1 or (by == "purejaxrl" and not args.purejaxrl)):
            continue
        size = f"{case.algo} {case.env} {case.seeds} × {case.envs} × {case.num_steps}"
        row: dict[str, Any] = {"program": f"{size} {args.label}".strip(), "case": name, "by": by}
        row |= {"chip": chip, "devices": devices, "device": chip}
        try:
            found = compiled(case, chip, devices, by, args)
            text = found.pop("hlo")
            if args.hlo:
                (args.hlo / f"{name}_{by}_{chip}x{devices}.hlo").write_text(text)
            row |= found | judged(text, case, chip, found.pop("own"))
        except PeerError as error:
            row["error"], failed = str(error), True
        print(described(row), flush=True)
        rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
        same = [(x["program"], x["by"], x["chip"], x["devices"]) for x in rows]
        here = (row["program"], by, chip, devices)
        rows = [x for x, key in zip(rows, same, strict=True) if key != here] + [row]
        rows.sort(key=lambda x: (list(CHIPS).index(x["chip"]), x["devices"], x["program"], x["by"]))
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
