"""Run directories made to do harm: none of their code runs, nothing outside is written, each is refused in a line."""

import json
import os
import shutil
import signal
import sys

import pytest
import tensorstore
from support import by_cost
from test_checkpoint import SMALL, forge, make_run, tree_of

from purejaxppo.cli.report import main as report
from purejaxppo.cli.run import main
from purejaxppo.errors import UsageError
from purejaxppo.policy.load import load
from purejaxppo.presets import preset
from purejaxppo.rundir.manifest import file_digest, files_of

SECONDS = 20  # within which a directory is to be refused


class Late(BaseException):
    """Nothing that the code under test would catch."""


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """What the others are made from: a run that is not over."""
    run = make_run(tmp_path_factory.mktemp("runs") / "honest", preset("trpo", "CartPole-v1", **SMALL))
    rows = [f"{seed},{update},{32 * update},20.0" for update in (1, 2) for seed in (0, 1)]
    (run / "metrics.csv").write_text("\n".join(["seed,update,env_steps,episode_return", *rows]) + "\n")
    return run


@pytest.fixture
def place(honest, tmp_path, monkeypatch):
    """A copy to make hostile, beside files that are none of its business and code that tells when it is run."""
    run = shutil.copytree(honest, tmp_path / "place" / "run")
    outside = tmp_path / "place" / "outside"
    (outside / "7").mkdir(parents=True)
    (outside / "7" / "manifest.json").write_text("{}")
    (outside / "precious").write_text("mine")
    (outside / "canary.py").write_text(
        f"open({str(outside / 'sang')!r}, 'w').close()\nclass Env:\n    pass\nclass CartPole(Env):\n    pass\n"
    )
    monkeypatch.syspath_prepend(outside)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr("purejaxppo.experiment.loop.compile_program", None)

    def late(signum, frame):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield run
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert "canary" not in sys.modules


def config(**changes):
    """config.json with other parts."""

    def change(run):
        content = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(content | changes))

    return change


def settings(**changes):
    """config.json with other settings."""

    def change(run):
        content = json.loads((run / "config.json").read_text())
        content["settings"] |= changes
        (run / "config.json").write_text(json.dumps(content))

    return change


def without_checkpoints(change):
    """The change, where no checkpoint contradicts it."""

    def both(run):
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").mkdir()
        change(run)

    return both


def content(text, name="config.json"):
    """A file that holds something else."""
    return lambda run: (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def link(name, target):
    """A link in place of a file."""

    def change(run):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return change


def pipe(name):
    """A pipe, from which nothing ever comes, in place of a file."""

    def change(run):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return change


def folder(name):
    def change(run):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return change


def manifests(edit):
    """All manifests forged, with digests that are right."""

    def change(run):
        for path in (run / "checkpoints").iterdir():
            forge(path, edit)

    return change


def part(name, value):
    return manifests(lambda outer: outer["content"].update({name: value}))


def about(**changes):
    return manifests(lambda outer: outer["content"]["about"].update(changes))


def described(**changes):
    """An array that is said to be another."""
    return manifests(lambda outer: next(iter(outer["content"]["arrays"].values())).update(changes))


def bomb(shape, chunks, said):
    """An array that unpacks to terabytes, all digests being right."""

    def change(run):
        for path in (run / "checkpoints").iterdir():
            store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/arrays/"}).result()
            key = "state.update/.zarray"
            array = json.loads(store.read(key).result().value)
            store.write(key, json.dumps(array | {"shape": shape, "chunks": chunks}).encode()).result()

            def edit(outer, path=path):
                outer["content"]["arrays"]["state.update"]["shape"] = said
                outer["content"]["files"] = {name: file_digest(file) for name, file in files_of(path).items()}

            forge(path, edit)

    return change


def all_checkpoints(act):
    def change(run):
        for path in list((run / "checkpoints").iterdir()):
            act(path)

    return change


def renamed(name):
    """A checkpoint whose name leads elsewhere; the others are gone."""

    def change(run):
        shutil.rmtree(run / "checkpoints" / "32")
        (run / "checkpoints" / "64").rename(run / "checkpoints" / name)

    return change


def elsewhere(path):
    """The checkpoint is moved out, and a link left in its place."""
    outside = path.parents[2] / "outside" / f"moved-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def pipe_beside(path):
    os.mkfifo(path / "arrays" / "d" / "pipe")


def linked_array(path):
    victim = next(x for x in (path / "arrays" / "d").iterdir())
    victim.unlink()
    victim.symlink_to("/dev/zero")


def linked_manifest(path):
    outside = path.parents[2] / "outside" / f"{path.name}.json"
    (path / "manifest.json").rename(outside)
    (path / "manifest.json").symlink_to(outside)


def listing(name):
    """A manifest that lists a file of the system."""

    def edit(outer):
        outer["content"]["files"][name] = {"bytes": 0, "sha256": "0" * 64}

    return manifests(edit)


HUGE, DEEP = 10**12, 100_000
CONFIGS = {  # what only config.json says
    "an env that is code": settings(env="canary:Env"),
    "an env that is a system call": settings(env="os:system"),
    "an env that climbs": settings(env="../../outside/canary"),
    "an env that calls": settings(env="__import__('canary').Env()"),
    "an env behind a suite": settings(env="gymnax/canary:Env"),
    "an env that is a list": settings(env=["CartPole-v1"]),
    "an env of a megabyte": settings(env="A" * 2**20),
    "an algo that is code": settings(algo="__import__('canary')"),
    "an algo that is a class": settings(algo="canary:Env"),
    "an algo of a megabyte": settings(algo="trpo" * 2**18),
    "an algo that is null": settings(algo=None),
    "an activation that is code": settings(activation="canary.Env"),
    "an activation that is a list": settings(activation=["tanh"]),
    "an attribute as a setting": settings(__class__="canary.Env"),
    "an unknown setting": settings(lerning_rate=1),
    "an unknown setting of a megabyte": settings(**{"x" * 2**20: 1}),
    "a setting of control characters": settings(**{"\x1b[2J\n": 1}),
    "more layers than can be": settings(hidden_sizes=[8] * 100_000),
    "wider layers than can be": settings(hidden_sizes=[HUGE, HUGE]),
    "wide layers": settings(hidden_sizes=[10**9, 10**9]),
    "layers of 2³⁰": settings(hidden_sizes=[2**30] * 3),
    "a cell of 2³⁰": settings(recurrent="lstm", recurrent_size=2**30),
    "a stack of 2³⁰ frames": settings(frame_stack=2**30),
    "an action taken 2³⁰ times": settings(action_repeat=2**30),
    "a billion steps in each of a billion environments": settings(num_envs=2**30, num_steps=2**30),
    "deep layers": settings(hidden_sizes=[[[8]]]),
    "layers that are text": settings(hidden_sizes="88"),
    "layers that are objects": settings(hidden_sizes={"8": 8}),
    "a thousand million environments": settings(num_envs=10**9),
    "more environments than can be counted": settings(num_envs=10**30),
    "steps without end": settings(num_steps=10**18),
    "no environments": settings(num_envs=0),
    "half an environment": settings(num_envs=1.5),
    "true environments": settings(num_envs=True),
    "updates without end": without_checkpoints(settings(total_steps=10**30)),
    "more updates than can be counted": without_checkpoints(settings(total_steps=2**50, num_envs=1)),
    "epochs without end": settings(num_epochs=10**20),
    "a rate of 400 digits": settings(learning_rate=10**400),
    "a rate that is no number": settings(learning_rate=float("nan")),
    "an infinite rate": settings(learning_rate=float("inf")),
    "a rate that is text": settings(learning_rate="inf"),
    "a yes that is a number": settings(normalize_observations=1),
    "seeds that are text": config(seeds=["0", "1"]),
    "seeds that are negative": config(seeds=[-1, 0]),
    "seeds that are huge": config(seeds=[0, 10**30]),
    "seeds twice": config(seeds=[0, 0]),
    "seeds that are true": config(seeds=[True, False]),
    "seeds that are fractions": config(seeds=[0.0, 1.0]),
    "no seeds": config(seeds=[]),
    "seeds by the million": config(seeds=list(range(2**20 + 1))),
    "seeds that are an object": config(seeds={"0": 0}),
    "a PRNG that is code": config(prng_implementation="canary.Env"),
    "options that are a list": config(options=[]),
    "settings that are text": config(settings="trpo"),
    "settings that are null": config(settings=None),
    "devices that are text": config(devices="all"),
    "threads that are text": config(threads="all"),
    "half a thread": config(threads=0.5),
    "a newer version": config(versions={"purejaxppo": "99.0"}),
    "no version": config(versions={}),
    "a version that is a list": config(versions={"purejaxppo": [0, 1]}),
}
OPTIONS = {  # what only a run that goes on reads
    "unknown options": config(options={"__class__": "canary"}),
    "options without end": config(options={"log_interval": 10**30}),
    "no checkpoints kept": config(options={"keep_checkpoints": 0}),
    "all checkpoints kept but one": config(options={"keep_checkpoints": -1}),
    "options that are text": config(options={"tensorboard": "../../outside"}),
    "devices by the million": config(devices=-1),
    "metrics that lead out": link("metrics.csv", "../outside/precious"),
    "metrics from a pipe": pipe("metrics.csv"),
    "a figure that leads out": link("learning_curve.png", "../outside/precious"),
    "TensorBoard's folder that leads out": link("tensorboard", "../outside"),
    "a run of TensorBoard that leads out": link("tensorboard/iqm", "../../outside"),
}
FILES = {  # what cannot be read at all
    "an empty config": content(""),
    "a config that is not text": content(b"\xff\xfe\x00{"),
    "a config of zeros": content(bytes(1000)),
    "a deep config": content("[" * DEEP + "]" * DEEP),
    "deep objects": content('{"settings":' * DEEP + "1" + "}" * DEEP),
    "a config that is a list": content("[]"),
    "a config with a number of a million digits": content('{"seeds": [' + "9" * 10**6 + "]}"),
    "a config that is cut off": content('{"settings": {"algo": "trpo"'),
    "a config that is a pipe": pipe("config.json"),
    "a config that is a folder": folder("config.json"),
    "a config that leads to zeros": link("config.json", "/dev/zero"),
    "a config that leads nowhere": link("config.json", "nowhere"),
    "a config that leads to itself": link("config.json", "config.json"),
    "no config": lambda run: (run / "config.json").unlink(),
}
CHECKPOINTS = {
    "checkpoints that lead out": link("checkpoints", "../outside"),
    "a checkpoint that leads out": all_checkpoints(elsewhere),
    "a manifest that leads out": all_checkpoints(linked_manifest),
    "a manifest that is a pipe": all_checkpoints(pipe("manifest.json")),
    "a manifest of nothing": all_checkpoints(content("", "manifest.json")),
    "a deep manifest": all_checkpoints(content('{"content":' * DEEP, "manifest.json")),
    "a manifest nearly too deep": all_checkpoints(
        content('{"content":' + "[" * 900 + "]" * 900 + "}", "manifest.json")
    ),
    "an array that leads to zeros": all_checkpoints(linked_array),
    "a pipe among the arrays": all_checkpoints(pipe_beside),
    "arrays that lead out": all_checkpoints(link("arrays", "../../../outside")),
    "a manifest with files of the system": listing("../../../../../../etc/passwd"),
    "a manifest with an absolute file": listing("/etc/passwd"),
    "a manifest with a device": listing("/dev/zero"),
    "a manifest without files": part("files", {}),
    "a manifest with a list of files": part("files", ["manifest.json"]),
    "a manifest without arrays": part("arrays", {}),
    "a manifest that is text": manifests(lambda outer: outer.update(content="content")),
    "an array as large as a country": described(shape=[10**12]),
    "an array larger than numbers": described(shape=[10**30]),
    "an array that is less than nothing": described(shape=[-1]),
    "an empty array larger than numbers": described(shape=[0, 10**30]),
    "an array whose shape is text": described(shape="x"),
    "an array of objects": described(dtype="O"),
    "an array of long texts": described(dtype="U1000000000"),
    "an array whose type is a number": described(dtype=7),
    "terabytes of zeros": bomb([10**12], [4], [10**12]),
    "terabytes that are said to be few": bomb([10**12], [10**12], []),
    "terabytes in one piece": bomb([2], [10**12], [2]),
    "keys that are code": part("keys", {"state.key": "canary.Env"}),
    "keys of nothing": part("keys", {}),
    "keys that are a list": part("keys", ["state.key"]),
    "nothing said of itself": part("about", {}),
    "itself as text": part("about", "about"),
    "updates that are text": about(update="1"),
    "updates before the first": about(update=-1, env_steps=-32),
    "updates of another name": about(update=10**9, env_steps=32 * 10**9),
    "seconds that are text": about(seconds={"compile": "1", "run": "1"}),
    "seconds that are a list": about(seconds=[1, 1]),
    "too few scores": about(scores=[1.0]),
    "scores that are objects": about(scores=[{}, {}]),
    "settings that are a list": about(settings=[]),
    "totals of another shape": manifests(lambda outer: outer["content"]["arrays"].pop("totals")),
    "a name of 18 digits": renamed("9" * 18),
}
NAMES = {  # that are no checkpoint's
    "a name that climbs": renamed("..64"),
    "a name of 22 digits": renamed("9999999999999999999999"),
    "a name in other digits": renamed("٦٤"),
}
SUMMARIES = {  # what `load` and the report read once a run is over
    "an empty summary": content("", "summary.json"),
    "a summary that is a pipe": pipe("summary.json"),
    "a summary that leads to zeros": link("summary.json", "/dev/zero"),
    "a summary without returns": content('{"env_steps": 96}', "summary.json"),
    "a summary of too many returns": content(
        '{"env_steps": 96, "eval_return": {"per_seed": [1, 2, 3, 4]}}', "summary.json"
    ),
    "a summary of texts": content('{"env_steps": 96, "eval_return": {"per_seed": "ab"}}', "summary.json"),
    "a summary of objects": content('{"env_steps": 96, "eval_return": {"per_seed": [{}, {}]}}', "summary.json"),
    "a deep summary": content("[" * DEEP, "summary.json"),
}
TABLES = {  # what the report reads
    "metrics of nothing known": content("a,b\n1,2\n", "metrics.csv"),
    "metrics that are not text": content(b"seed,update,env_steps\n\xff,1,1\n", "metrics.csv"),
    "metrics of zeros": content(bytes(1000), "metrics.csv"),
    "metrics with a cell of a megabyte": content("seed,update,env_steps\n0,1," + "9" * 2**20 + "\n", "metrics.csv"),
    "metrics with code": content("seed,update,env_steps\n0,1,__import__('canary')\n", "metrics.csv"),
    "metrics of another seed": content("seed,update,env_steps\n7,1,1\n", "metrics.csv"),
    "metrics of uneven rows": content("seed,update,env_steps\n0,1\n", "metrics.csv"),
    "metrics from a pipe": pipe("metrics.csv"),
    "metrics that lead to zeros": link("metrics.csv", "/dev/zero"),
    "metrics that are a folder": folder("metrics.csv"),
}


def assert_one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert len(error) < 3000
    assert error.isprintable() or error[:-1].isprintable()


def one_in_four(cases):
    return by_cost(cases, [*cases][::4])


def refused_by_load(run):
    with pytest.raises(UsageError) as refused:
        load(run)
    assert len(str(refused.value)) < 3000


@pytest.mark.parametrize("case", one_in_four(CONFIGS | FILES | CHECKPOINTS | NAMES))
def test_load_refuses(place, case):
    (CONFIGS | FILES | CHECKPOINTS | NAMES)[case](place)
    before = tree_of(place.parent)
    refused_by_load(place)
    assert tree_of(place.parent) == before


@pytest.mark.parametrize("case", one_in_four(CONFIGS | OPTIONS | FILES | CHECKPOINTS))
def test_resume_refuses(place, case, capsys):
    (CONFIGS | OPTIONS | FILES | CHECKPOINTS)[case](place)
    before = tree_of(place.parent)
    assert main(["--resume", str(place), "--quiet"]) == 2
    assert_one_line(capsys)
    assert tree_of(place.parent) == before


@pytest.mark.parametrize("case", SUMMARIES)
def test_load_refuses_a_summary(place, case):
    SUMMARIES[case](place)
    before = tree_of(place.parent)
    refused_by_load(place)
    assert tree_of(place.parent) == before


REPORTED = FILES | SUMMARIES | TABLES
MISSING = {"metrics of zeros"}  # what the report takes as not known, and draws nothing of


@pytest.mark.parametrize("case", [case for case in REPORTED if case not in MISSING])
def test_the_report_refuses(place, case, capsys):
    REPORTED[case](place)
    before = tree_of(place.parent)
    assert report([str(place), "--out", str(place.parent / "report.html")]) == 2
    assert_one_line(capsys)
    assert tree_of(place.parent) == before


def test_a_directory_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "missing", tmp_path / "a\0b"):
        assert main(["--resume", str(path)]) == 2
        assert report([str(path)]) == 2
        with pytest.raises(UsageError):
            load(path)
    capsys.readouterr()


def test_no_checkpoint_is_found_outside(place):
    for name in ("../../outside/7", "/etc", "64/../../../outside/7", ".", "", "064", -1, None):
        with pytest.raises(UsageError, match="was not kept"):
            load(place, checkpoint=name)


def test_what_is_honest_is_not_refused(place):
    assert load(place).env_steps == 64
