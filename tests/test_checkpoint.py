"""Checkpoints: what is restored is what was saved, and what is not whole or not of this run is refused by name."""

import io
import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_same_bits, by_cost

from purejaxppo import Config, diagnose
from purejaxppo.__main__ import front
from purejaxppo.cli.run import main
from purejaxppo.errors import UsageError
from purejaxppo.policy.load import load
from purejaxppo.presets import preset, settings_of
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.checkpoint import newest_whole, prune, read, save, steps_saved
from purejaxppo.rundir.files import write_json
from purejaxppo.rundir.manifest import digest
from purejaxppo.rundir.record import RunRecord, versions, write_record
from purejaxppo.train import init

SMALL = {"num_envs": 2, "num_steps": 16, "total_steps": 96, "num_minibatches": 2, "hidden_sizes": (8,)}


def state(seed=0):
    """A state with leaves of many kinds."""
    rng = np.random.default_rng(seed)
    return {
        "layers": [{"kernel": jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)} for _ in range(3)],
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
        "image": jnp.asarray(rng.integers(0, 255, (2, 5, 5)), jnp.uint8),
        "mask": jnp.asarray(rng.random(9) < 0.5),
        "count": jnp.int32(seed),
        "small": jnp.asarray(rng.integers(-9, 9, 4), jnp.int8),
        "nothing": jnp.zeros((0, 3)),
        "odd": jnp.asarray([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
        "keys": jax.random.split(jax.random.key(seed), 4),
    }


def restore(directory, like):
    return read(directory).state(like)


def saved(tmp_path, *seeds):
    for seed in seeds:
        save(tmp_path / str(seed), {"state": state(seed)}, {"score": float(seed)})
    return steps_saved(tmp_path)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_come_back(tmp_path, impl):
    tree = {"state": {"one": jax.random.key(3, impl=impl), "many": jax.random.split(jax.random.key(4, impl=impl), 5)}}
    save(tmp_path / "1", tree, {})
    back = restore(tmp_path / "1", tree["state"])
    assert_same_bits(back, tree["state"])
    assert back["one"].dtype == tree["state"]["one"].dtype


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_key_of_another_implementation_is_refused(tmp_path, impl):
    save(tmp_path / "1", {"state": {"key": jax.random.key(0, impl="rbg")}}, {})
    like = {"key": jax.random.key(0, impl=impl)}
    if impl == "rbg":
        restore(tmp_path / "1", like)
        return
    with pytest.raises(UsageError, match=r"state\.key is a key of rbg"):
        restore(tmp_path / "1", like)


def test_every_leaf_comes_back_with_its_bits_shape_and_type(tmp_path):
    (path,) = saved(tmp_path, 3)
    assert_same_bits(restore(path, state(3)), state(3))
    assert_same_bits(restore(path, jax.eval_shape(lambda: state(0))), state(3))


@pytest.mark.parametrize(
    "dtype", ["bool", "int4", "int8", "uint8", "int16", "uint32", "float16", "bfloat16", "float8_e4m3fn", "complex64"]
)
def test_a_type_comes_back(tmp_path, dtype):
    tree = {"scalar": jnp.ones((), dtype), "vector": jnp.asarray([0, 1, 1]).astype(dtype), "none": jnp.zeros(0, dtype)}
    save(tmp_path / "1", {"state": tree}, {})
    assert_same_bits(restore(tmp_path / "1", tree), tree)


def test_names_with_separators_are_told_apart_and_stay_inside(tmp_path):
    names = ["", ".", "..", "../../out", "/etc", "a/b", "a.b", ".zarray", "ü\n", "with space"]
    tree = {name: jnp.full(2, i, jnp.float32) for i, name in enumerate(names)} | {"a": {"b": jnp.full(2, -1.0)}}
    save(tmp_path / "inside" / "1", {"state": tree}, {})
    assert_same_bits(restore(tmp_path / "inside" / "1", tree), tree)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["1"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
def test_another_type_is_refused_by_name_and_not_cast(tmp_path, dtype):
    save(tmp_path / "1", {"state": {"kernel": np.ones(3, dtype)}}, {})
    with pytest.raises(UsageError, match=rf"state\.kernel is {dtype}\[3\] and must be float32\[3\]"):
        restore(tmp_path / "1", {"kernel": jnp.ones(3)})


def test_int64_is_refused_where_int32_is_wanted(tmp_path):
    save(tmp_path / "1", {"state": {"count": np.int64(3)}}, {})
    with pytest.raises(UsageError, match=r"state\.count is int64\[\] and must be int32\[\]"):
        restore(tmp_path / "1", {"count": jnp.int32(3)})


def test_another_shape_and_a_missing_array_are_refused_by_name(tmp_path):
    save(tmp_path / "1", {"state": {"kernel": jnp.ones((3, 4))}}, {})
    with pytest.raises(UsageError, match=r"state\.kernel is float32\[3, 4\] and must be float32\[4, 3\]"):
        restore(tmp_path / "1", {"kernel": jnp.ones((4, 3))})
    with pytest.raises(UsageError, match=r"state\.bias is missing"):
        restore(tmp_path / "1", {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})


def test_what_cannot_be_saved_leaves_nothing_and_the_others_as_they_were(tmp_path):
    saved(tmp_path, 1)
    before = tree_of(tmp_path)
    with pytest.raises(OSError, match=r"checkpoint .*/2 cannot be written"):
        save(tmp_path / "2", {"state": {"x": np.arange(3).astype(">f4")}}, {})
    assert tree_of(tmp_path) == before


def test_no_file_tells_where_it_was_written(tmp_path):
    (path,) = saved(tmp_path, 1)
    for file in path.rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_saving_again_replaces_the_old_one(tmp_path):
    saved(tmp_path, 1)
    save(tmp_path / "1", {"state": state(7)}, {})
    assert_same_bits(restore(tmp_path / "1", state(7)), state(7))


def test_threads_that_save_at_once_wait_for_each_other(tmp_path):
    """Orbax numbers its operations once in a process; what is swapped meanwhile is put back."""
    hooks = sys.excepthook, threading.excepthook
    with ThreadPoolExecutor(4) as pool:
        several = [pool.submit(save, tmp_path / str(i), {"x": jnp.arange(i + 1)}, {}) for i in range(8)]
        for future in several:
            future.result()
    for i in range(8):
        np.testing.assert_array_equal(read(tmp_path / str(i)).arrays["x"], np.arange(i + 1))
    assert (sys.excepthook, threading.excepthook) == hooks


def test_what_others_raise_meanwhile_is_printed(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: told.append(str(raised.exc_value)))
    go_on = threading.Event()

    def fail(what):
        go_on.wait(10)
        raise ValueError(what)

    before = threading.Thread(target=fail, args=("theirs",))
    before.start()
    with checkpoint._silent():
        go_on.set()
        within = threading.Thread(target=fail, args=("orbax's",))
        within.start()
        for thread in (before, within):
            thread.join()
    assert told == ["theirs"]


def test_half_written_drafts_never_count_and_are_cleared_away(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / ".2.saving")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "4").write_text("no directory")
    (tmp_path / "²").mkdir()
    (tmp_path / ("1" * 30)).mkdir()
    assert [path.name for path in steps_saved(tmp_path)] == ["1"]
    prune(tmp_path, 1, tmp_path / "1")
    assert not (tmp_path / ".2.saving").exists()
    assert (tmp_path / "1").exists()


def pretend(tmp_path, scores):
    """Checkpoints of which only the score is of interest, written one after the other."""
    for steps, score in scores.items():
        (tmp_path / str(steps)).mkdir()
        write_json(tmp_path / str(steps) / "manifest.json", {"content": {"about": {"score": score}}})


@pytest.mark.parametrize(
    ("scores", "keep", "left"),
    [
        ({1: 5.0, 2: 1.0, 3: 2.0, 4: 3.0}, 2, [1, 3, 4]),
        ({1: 5.0, 2: 5.0, 3: 2.0, 4: 3.0}, 1, [2, 4]),  # of equals the later one
        ({1: np.nan, 2: 1.0, 3: np.nan, 4: np.nan}, 1, [2, 4]),
        ({1: np.nan, 2: np.nan, 3: np.nan}, 1, [3]),
        ({1: -np.inf, 2: np.nan, 3: -2.0}, 1, [3]),
        ({1: np.inf, 2: 1.0, 3: 2.0}, 1, [1, 3]),
        ({1: 1.0, 2: 2.0}, 5, [1, 2]),
        ({9: 1.0, 10: 0.0, 100: 0.0}, 1, [9, 100]),  # numbers, not text
        ({1: "no number", 2: [3], 3: None}, 1, [3]),
        ({}, 3, []),
    ],
)
def test_the_last_and_the_best_are_kept(tmp_path, scores, keep, left):
    pretend(tmp_path, scores)
    prune(tmp_path, keep, tmp_path / str(list(scores)[-1] if scores else 0))
    assert [int(path.name) for path in steps_saved(tmp_path)] == left


def test_what_cannot_be_deleted_yet_loses_its_name_and_ends_no_run(tmp_path, monkeypatch):
    """As on NFS, where somebody has a file of it open."""
    pretend(tmp_path, {1: 0.0, 2: 1.0})
    monkeypatch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(OSError(39, "Directory not empty")))
    prune(tmp_path, 1, tmp_path / "2")
    assert [path.name for path in steps_saved(tmp_path)] == ["2"]
    monkeypatch.undo()
    prune(tmp_path, 1, tmp_path / "2")
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_the_one_just_written_is_kept_where_later_ones_are_damaged(tmp_path):
    pretend(tmp_path, {1: 9.0, 3: 0.0, 4: 0.0, 2: 0.0})
    prune(tmp_path, 1, tmp_path / "2")
    assert [path.name for path in steps_saved(tmp_path)] == ["1", "2", "4"]


def test_a_manifest_that_cannot_be_read_has_no_score(tmp_path):
    pretend(tmp_path, {1: 1.0, 2: 7.0, 3: 0.0})
    (tmp_path / "2" / "manifest.json").write_bytes(b"\xff")
    prune(tmp_path, 1, tmp_path / "3")
    assert [path.name for path in steps_saved(tmp_path)] == ["1", "3"]


def damage(rng, path):
    """One bit flipped, a part cut off, a part cut out, or the file deleted; returns what was done."""
    content = path.read_bytes()
    kind = rng.choice(["flip", "truncate", "cut", "delete"], p=[0.4, 0.3, 0.15, 0.15]) if content else "delete"
    i = int(rng.integers(max(len(content), 1)))
    if kind == "delete":
        path.unlink()
    elif kind == "flip":
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << int(rng.integers(8))]) + content[i + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[:i])
    else:
        path.write_bytes(content[:i] + content[i + int(rng.integers(1, 9)) :])
    return f"{kind} at {i} of {path}"


@pytest.mark.parametrize("cases", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_is_restored_and_the_one_before_is_used(tmp_path, cases):
    candidates = saved(tmp_path, 1, 2)
    files = sorted(path for path in candidates[-1].rglob("*") if path.is_file())
    assert len(files) > 5
    rng = np.random.default_rng(cases)
    for _ in range(cases):
        file = files[rng.integers(len(files))]
        whole, said = file.read_bytes(), []
        what = damage(rng, file)
        snapshot = newest_whole(candidates, lambda snapshot: None, said.append)
        file.write_bytes(whole)
        assert snapshot.directory == candidates[0], what
        assert len(said) == 2, what
        assert str(file) in said[0], (what, said)
        assert said[1] == "going on from checkpoint 1 instead"
        assert_same_bits(snapshot.state(state(1)), state(1))
    assert newest_whole(candidates, lambda snapshot: None, said.append).directory == candidates[1]


def test_every_bit_of_the_manifests_first_line_of_content_counts(tmp_path):
    save(tmp_path / "1", {"state": {"x": jnp.ones(2)}}, {})
    manifest = tmp_path / "1" / "manifest.json"
    whole = manifest.read_bytes()
    for i in range(120):
        for bit in range(8):
            manifest.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :])
            with pytest.raises(UsageError, match=r"manifest\.json"):
                read(tmp_path / "1")


def test_a_deleted_part_is_named(tmp_path):
    candidates = saved(tmp_path, 1, 2)
    shutil.rmtree(candidates[1] / "arrays")
    with pytest.raises(UsageError, match=r"2/arrays/.* is missing"):
        read(candidates[1])
    shutil.rmtree(candidates[1])
    candidates[1].mkdir()
    with pytest.raises(UsageError, match=r"2/manifest\.json cannot be read"):
        read(candidates[1])


def test_a_file_that_was_not_saved_is_named(tmp_path):
    (path,) = saved(tmp_path, 1)
    (path / "arrays" / "more").write_text("?")
    with pytest.raises(UsageError, match=r"arrays/more is not in manifest\.json"):
        read(path)


def test_files_of_two_checkpoints_cannot_be_mixed(tmp_path):
    first, second = saved(tmp_path, 1, 2)
    shutil.rmtree(second / "arrays")
    shutil.copytree(first / "arrays", second / "arrays")
    with pytest.raises(UsageError, match=r"2/arrays/"):
        read(second)


def test_where_none_is_whole_each_is_named(tmp_path):
    candidates, said = saved(tmp_path, 1, 2), []
    for path in candidates:
        (path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"2/manifest\.json.*1/manifest\.json.*No usable checkpoint is left"):
        newest_whole(candidates, lambda snapshot: None, said.append)
    assert said == []


def forge(path, change):
    """Change what a manifest says, and make its digest right again."""
    manifest = path / "manifest.json"
    outer = json.loads(manifest.read_text())
    change(outer)
    outer["sha256"] = digest(outer["content"])
    write_json(manifest, outer)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda outer: outer.update(format=3), "has format 3 and this version reads up to 2; upgrade purejaxppo"),
        (lambda outer: outer.update(format=2), "format 2 does not belong to it"),
        (lambda outer: outer.update(format=10**9), "has format 1000000000"),
        (lambda outer: outer["content"].update(purejaxppo="99.0.0"), r"purejaxppo 99\.0\.0, newer than this .*upgrade"),
        (lambda outer: outer["content"].update(purejaxppo="0.2.99999"), "newer"),
        (lambda outer: outer["content"].update(purejaxppo="latest"), "is no version"),
        (lambda outer: outer["content"].pop("purejaxppo"), "is no version"),
        (lambda outer: outer.update(format="2"), "damaged"),
        (lambda outer: outer.update(format=True), "damaged"),
        (lambda outer: outer.update(format=0), "damaged"),
        (lambda outer: outer.pop("format"), "damaged"),
        (lambda outer: outer.update(more=1), "damaged"),
    ],
)
def test_another_format_or_a_newer_version_is_refused(tmp_path, change, match):
    (path,) = saved(tmp_path, 1)
    forge(path, change)
    with pytest.raises(UsageError, match=rf"manifest\.json.*{match}"):
        read(path)


def make_run(out, config, seeds=(0, 1)):
    """A run after two of its three updates, as far as its files go."""
    (out / "checkpoints").mkdir(parents=True)
    options = {"log_interval": 1, "keep_checkpoints": 3, "final_episodes": 2}
    write_record(RunRecord(out, config, [*seeds], options, "threefry2x32", 1, versions()))
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    like = jax.eval_shape(jax.vmap(lambda key: init(config, key)), keys)
    begun = jax.tree.map(lambda x: keys if x.dtype == keys.dtype else np.zeros(x.shape, x.dtype), like)
    batch = config.num_envs * config.num_steps
    for update in (1, 2):
        about = {"update": update, "env_steps": update * batch, "score": 1.0, "scores": [1.0] * len(seeds)}
        about |= {"seconds": {"compile": 1.0, "run": 1.0}, "seeds": [*seeds], "settings": settings_of(config)}
        totals = np.zeros((len(seeds), 3), np.float32)
        save(out / "checkpoints" / str(update * batch), {"state": begun, "totals": totals}, about)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "trpo", preset("trpo", "CartPole-v1", **SMALL))


OTHERS = {
    "algo": lambda: (preset("npg", "CartPole-v1", **SMALL), (0, 1)),
    "env": lambda: (preset("trpo", "gymnax/CartPole-v1", **SMALL), (0, 1)),
    "hidden_sizes": lambda: (preset("trpo", "CartPole-v1", **SMALL | {"hidden_sizes": (4,)}), (0, 1)),
    "max_kl": lambda: (preset("trpo", "CartPole-v1", **SMALL, max_kl=0.02), (0, 1)),
    "activation": lambda: (preset("trpo", "CartPole-v1", **SMALL, activation="relu"), (0, 1)),
    "seeds": lambda: (preset("trpo", "CartPole-v1", **SMALL), (0, 2)),
}


@pytest.mark.parametrize("setting", by_cost(OTHERS, [*OTHERS][:2]))
def test_the_checkpoints_of_another_run_are_refused_by_the_settings_name(run, tmp_path, setting, monkeypatch, capsys):
    monkeypatch.setattr("purejaxppo.experiment.loop.compile_program", None)
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    shutil.rmtree(mine / "checkpoints")
    config, seeds = OTHERS[setting]()
    (make_run(tmp_path / "other", config, seeds) / "checkpoints").rename(mine / "checkpoints")
    before = tree_of(mine)
    assert main(["--resume", str(mine)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    # a setting that only one of the two algorithms has is named, too
    assert f"was written with {setting} = " in error
    assert str(mine / "checkpoints" / "64") in error
    assert "config.json says" in error
    assert tree_of(mine) == before
    with pytest.raises(UsageError, match=f"was written with {setting} = "):
        load(mine)


def test_one_checkpoint_of_another_run_is_passed_over_for_the_one_before(run, tmp_path):
    mine = shutil.copytree(run, tmp_path / "mine")
    other = make_run(tmp_path / "other", preset("npg", "CartPole-v1", **SMALL))
    shutil.rmtree(mine / "checkpoints" / "64")
    shutil.copytree(other / "checkpoints" / "64", mine / "checkpoints" / "64")
    with pytest.warns(UserWarning, match="checkpoint") as said:
        assert load(mine).env_steps == 32
    assert "64 was written with algo = 'npg'" in str(said[0].message)
    assert "going on from checkpoint 32 instead" in str(said[1].message)


def test_a_checkpoint_under_another_number_is_refused(run, tmp_path):
    mine = shutil.copytree(run, tmp_path / "mine")
    (mine / "checkpoints" / "32").rename(mine / "checkpoints" / "96")
    with pytest.warns(UserWarning, match="96 cannot be used|going on from checkpoint 64"):
        assert load(mine).env_steps == 64


def test_total_steps_may_differ_unless_the_learning_rate_is_annealed(tmp_path):
    for annealed in (False, True):
        out = make_run(tmp_path / str(annealed), Config(**SMALL, anneal_learning_rate=annealed))
        content = json.loads((out / "config.json").read_text())
        content["settings"]["total_steps"] = 128
        write_json(out / "config.json", content)
        if annealed:
            with pytest.raises(UsageError, match=r"was written with total_steps = 96, and config\.json says 128"):
                load(out)
        else:
            assert load(out).env_steps == 64


class Unnamed:
    """An environment without a `repr` of its own: its address is in it."""

    def __init__(self):
        self._env = preset("ppo").environment

    def __getattr__(self, name):
        return getattr(self._env, name)


def test_an_environment_may_be_given_again_as_an_instance(tmp_path):
    out = make_run(tmp_path / "run", preset("trpo", "test_checkpoint:Unnamed", **SMALL))
    with pytest.raises(UsageError, match="which may come from others"):
        load(out)
    assert load(out, env="test_checkpoint:Unnamed").env_steps == 64
    assert load(out, env=Unnamed()).env_steps == 64
    with pytest.raises(UsageError, match="not the one that this run was trained on"):
        load(out, env="CartPole-v1")


def test_a_study_leads_to_its_run(tmp_path):
    (tmp_path / "tune.json").write_text("{}")
    for command in ("evaluate", "render", "export", "diagnose"):
        with redirect_stderr(io.StringIO()) as said:
            assert front([command, str(tmp_path)]) == 2
        assert f"tune --resume {tmp_path} goes on" in said.getvalue()
    (tmp_path / "best").mkdir()
    with pytest.raises(UsageError, match=f"is in best: pass {tmp_path / 'best'}"):
        diagnose(tmp_path)


def test_the_best_seed_is_that_of_the_final_evaluation_if_the_run_has_ended(run, tmp_path):
    mine = shutil.copytree(run, tmp_path / "mine")
    assert load(mine).seed == 0
    summary = {"env_steps": 96, "eval_return": {"per_seed": ["nan", 2.0]}}
    write_json(mine / "summary.json", summary)
    assert load(mine).seed == 1
    write_json(mine / "summary.json", summary | {"env_steps": 64})  # of before it was made longer
    assert load(mine).seed == 0


def tree_of(directory):
    """Everything below a directory: names, kinds and contents."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in directory.rglob("*")
    }
