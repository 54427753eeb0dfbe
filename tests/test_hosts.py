"""Several processes that train together: the same numbers, one line for what does not fit, no process left behind."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from support import QUICK

from purejaxppo.errors import UsageError
from purejaxppo.experiment.options import HostOptions
from purejaxppo.parallel import hosts, joining
from purejaxppo.parallel.hosts import Group, Joined, decode, encode, group
from purejaxppo.parallel.joining import meet
from purejaxppo.parallel.places import Place, find_place, parse_place
from purejaxppo.parallel.runs import own_runs
from purejaxppo.presets import preset
from purejaxppo.rundir.checkpoint import read, steps_saved
from purejaxppo.rundir.logs import read_log

SMALL = "--env CartPole-v1 --num-envs 2 --num-steps 16 --hidden-sizes 8 --num-minibatches 1 --num-epochs 1".split()
SMALL += "--algo a2c --final-episodes 1 --no-anneal-learning-rate --quiet".split()
CHUNKS = [*SMALL, *"--total-steps 2e7 --checkpoint-interval 200 --log-interval 200".split()]


def start(flags, *, index=None, port=0, processes=2, devices=1, more=",timeout=8,wait=60", **env):
    """`purejaxppo run` as a process; with an index, as one of several."""
    place = f"coordinator=127.0.0.1:{port},processes={processes},process={index}{more}"
    flags = [*flags, *([] if index is None else ["--distributed", place])]
    xla = {"xla_force_host_platform_device_count": devices} | QUICK
    xla_flags = " ".join(f"--{name}={str(value).lower()}" for name, value in xla.items())
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags} | env
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which JAX has set in this process
    command = [sys.executable, "-m", "purejaxppo", "run", *map(str, flags)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_all(flags, processes=2, **how):
    port = free_port()
    return [start(flags, index=i, port=port, processes=processes, **how) for i in range(processes)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ended(processes, seconds=150):
    """Exit code and stderr of each; none is left."""
    found = []
    try:
        for process in processes:
            _, errors = process.communicate(timeout=seconds)
            found.append((process.returncode, errors.strip()))
    finally:
        for process in processes:
            process.kill()
    return found


def codes(processes):
    """They may warn of the XLA_FLAGS that make so many devices, which differ."""
    return [code for code, _ in ended(processes)]


def until_saved(out, processes, seconds=150):
    ends = time.monotonic() + seconds
    while not steps_saved(out / "checkpoints"):
        assert time.monotonic() < ends
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.1)


def listening(process):
    """(address, port) that a process listens on, from /proc."""
    own = {os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir() if path.is_symlink()}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.append((words[1].rpartition(":")[0], int(words[1].rpartition(":")[2], 16)))
    return found


def assert_same(one, other):
    """Two run directories hold the same numbers, bit for bit."""
    a, b = (read(steps_saved(out / "checkpoints")[-1]) for out in (one, other))
    assert a.arrays.keys() == b.arrays.keys()
    assert a.about["seeds"] == b.about["seeds"]
    for path, x in a.arrays.items():
        np.testing.assert_array_equal(x, b.arrays[path], err_msg=path)
    logs = [read_log(out, a.about["seeds"]).tidy() for out in (one, other)]
    assert logs[0].keys() == logs[1].keys()
    for name, x in logs[0].items():
        np.testing.assert_array_equal(x, logs[1][name], err_msg=name)
    returns = [json.loads((out / "summary.json").read_text())["eval_return"] for out in (one, other)]
    assert returns[0] == returns[1]


@pytest.mark.thorough
def test_two_processes_learn_what_one_does_on_two_devices_to_the_bit(tmp_path):
    flags = [*SMALL, "--num-seeds", "3", "--total-steps", "256", "--checkpoint-interval", "4"]
    alone, both = (
        start([*flags, "--out", tmp_path / "one"], devices=2),
        start_all([*flags, "--out", tmp_path / "two"]),
    )
    assert ended([alone, *both]) == [(0, "")] * 3
    assert_same(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").glob("*.csv")) == ["metrics.0-2.csv", "metrics.2-3.csv"]
    parts = steps_saved(tmp_path / "two" / "checkpoints")[-1]
    manifest = json.loads((parts / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert sorted(manifest["content"]["parts"]) == ["part-000000", "part-000001"]
    array = next((parts / "part-000001" / "arrays").rglob("d/*"))
    array.write_bytes(array.read_bytes()[:-1] + b"?")
    with pytest.raises(UsageError, match=r"part-000001.*is damaged: its SHA-256"):
        read(parts)


def test_who_comes_with_another_number_count_or_version_ends_all():
    def come(place, about, lines):
        try:
            meet(place, about)
        except UsageError as error:
            lines.append(str(error))

    for i, count, version, match in (
        (1, 3, "1", "says that there are 3 processes, and process 0 2"),
        (0, 2, "1", "two processes have the number 0"),
        (1, 2, "2", r"jax is 2 in process 1 \(.*\), and 1 in process 0"),
    ):
        address, lines = f"127.0.0.1:{free_port()}", []
        first = threading.Thread(target=come, args=(Place(address, 2, 0, wait=20), {"jax": "1"}, lines))
        first.start()
        time.sleep(0.2)
        come(Place(address, count, i, wait=20), {"jax": version}, lines)
        first.join(30)
        assert len(lines) == 2
        assert lines[0] == lines[1]
        assert re.search(match, lines[0]), lines


def test_who_does_not_come_is_named_and_strangers_are_nobody():
    address = ("127.0.0.1", free_port())

    def stranger():
        time.sleep(0.3)
        lines = b'{"process": "0"}', b'{"process": 1, "processes": 2}', b'{"process": 7, "processes": 2, "about": {}}'
        for data in (b"GET / HTTP/1.1\r\n\r\n\n", b"[]\n", *(line + b"\n" for line in lines), b"\xff\n"):
            with socket.create_connection(address) as connection:
                connection.sendall(data)

    thread = threading.Thread(target=stranger)
    thread.start()
    with pytest.raises(UsageError, match=r"process 1 of 2 did not come at 127\.0\.0\.1:\d+ within 1\.5 s"):
        meet(Place(f"{address[0]}:{address[1]}", 2, 0, wait=1.5), {})
    thread.join()
    with pytest.raises(UsageError, match=r"process 0 of 2 did not answer at 127\.0\.0\.1:\d+ within 1 s"):
        meet(Place(f"{address[0]}:{address[1]}", 2, 1, wait=1), {})


def test_for_whom_one_waits_is_said(monkeypatch):
    monkeypatch.setattr(joining, "SAY_SECONDS", 0.3)
    told = []
    place = Place(f"127.0.0.1:{free_port()}", 3, 0, wait=1)
    with pytest.raises(UsageError, match="process 1, 2 of 3 did not come"):
        meet(place, {}, told.append)
    with pytest.raises(UsageError, match="did not answer"):
        meet(place._replace(process=1), {}, told.append)
    assert told == [f"waiting for process {whom} of 3 at {place.coordinator}" for whom in ("1, 2", "0")]


def test_strangers_who_say_nothing_keep_nobody_waiting():
    address, done = ("127.0.0.1", free_port()), threading.Event()

    def strangers():
        while not done.wait(0.2):
            with contextlib.suppress(OSError), socket.create_connection(address) as connection:
                while not done.wait(0.1):
                    connection.sendall(b"x")

    threads = [threading.Thread(target=strangers) for _ in range(3)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    with pytest.raises(UsageError, match="process 1 of 2 did not come"):
        meet(Place(f"{address[0]}:{address[1]}", 2, 0, wait=2), {})
    assert time.monotonic() - began < 8
    done.set()
    for thread in threads:
        thread.join()


def test_one_that_ends_before_all_have_come_may_come_again():
    address, names = f"127.0.0.1:{free_port()}", {}
    host, port = Place(address, 3, 0).address

    def come(i):
        names[i] = meet(Place(address, 3, i, wait=20), {})

    first = threading.Thread(target=come, args=(0,))
    first.start()
    hello = {"process": 1, "processes": 3, "name": "\x1b]0;gone\x07", "about": {}}
    with contextlib.closing(socket.socket()) as lost:
        while lost.connect_ex((host, port)):
            time.sleep(0.05)
        lost.sendall(json.dumps(hello).encode() + b"\n")
        time.sleep(0.3)
    others = [threading.Thread(target=come, args=(i,)) for i in (1, 2)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join(30)
    assert names[0] == names[1] == names[2]
    assert not any("gone" in name for name in names[0])


def test_nothing_that_a_stranger_sends_is_printed_as_it_is():
    address, lines = f"127.0.0.1:{free_port()}", []
    host, port = Place(address, 2, 0).address

    def lead():
        try:
            meet(Place(address, 2, 0, wait=20), {})
        except UsageError as error:
            lines.append(str(error))

    first = threading.Thread(target=lead)
    first.start()
    hello = {"process": 1, "processes": 9, "name": "\x1b]0;owned\x07", "about": {"\x1b": "\x07"}}
    with contextlib.closing(socket.socket()) as stranger:
        while stranger.connect_ex((host, port)):
            time.sleep(0.05)
        stranger.sendall(json.dumps(hello).encode() + b"\n")
        first.join(30)
    assert "process 1 (?]0;owned?) says that there are 9 processes" in lines[0]
    assert lines[0].isprintable()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("coordinator=h:1", "processes and process missing"),
        ("coordinator=h,processes=2,process=0", "not HOST:PORT"),
        ("coordinator=h:99999,processes=2,process=0", "not HOST:PORT"),
        ("coordinator=h:1,processes=2,process=2", r"process is in 0 … processes - 1"),
        ("coordinator=h:1,processes=two,process=0", "are numbers"),
        ("coordinator=h:1,processes=2,process=0,timeout=nan", "timeout is in seconds ≥ 5"),
        ("coordinator=h:1,processes=2,process=0,timeout=1", "timeout is in seconds ≥ 5"),
        ("coordinator=h:1,processes=2,process=0,wait=0", "wait in seconds ≥ 1"),
        ("yes", "'yes' is none of its parts"),
    ],
)
def test_a_place_that_cannot_be_is_refused(text, match):
    with pytest.raises(UsageError, match=match):
        parse_place(text)


def test_one_process_is_detected_as_such_and_several_as_jax_says(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert find_place(None) is None
    slurm = {"JOB_ID": "4242", "STEP_NODELIST": "node[007-008]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert find_place(None) == Place("node007:61586", 2, 1, local_device=0)
    assert find_place("off") is None
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")  # which `jax.distributed` reads
    assert find_place(None).local_device is None
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place(None) is None
    assert find_place("coordinator=h:1,processes=1,process=0") is None
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911")
    for name, value in {"SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    found = find_place(None)
    assert found.coordinator.startswith("10.96.0.1:")
    assert found[1:3] == (4, 3)
    assert found.local_device == 1


def test_values_are_told_as_they_are_and_as_json():
    value = {"x": np.float32([np.nan, np.inf, -0.0, 1e-45]), "i": np.zeros((0, 3), np.int32), "text": "π", "none": None}
    again = decode(encode(value))
    assert again["x"].tobytes() == value["x"].tobytes()
    assert again["i"].shape == (0, 3)
    assert again["i"].dtype == np.int32
    assert again["text"] == "π"
    assert again["none"] is None
    with pytest.raises(TypeError):
        encode({"x": np.array([object()])})
    alone = Group()
    assert group().count == 1
    assert group().leads
    assert alone.told(3) == 3
    assert alone.all_of(3) == [3]
    assert alone.gathered(3) == [3]
    assert alone.by_leader(lambda: 5) == 5
    assert alone.decided(2, max) == 2
    alone.agree({"x": 1})


class Store:
    """What JAX's client offers of its key-value store, for threads."""

    def __init__(self):
        self.content, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.content and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.content[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.content, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.content[key]

    def key_value_dir_get(self, prefix):
        with self.changed:
            return [(key, value) for key, value in self.content.items() if key.startswith(prefix)]

    def key_value_delete(self, prefix):
        with self.changed:
            self.content = {key: value for key, value in self.content.items() if not key.startswith(prefix)}


def in_threads(joined, work):
    with ThreadPoolExecutor(len(joined)) as pool:
        return [*pool.map(work, joined)]


def test_three_exchange_values_and_leave_nothing_in_the_store():
    store = Store()
    joined = [Joined(store, ["a", "b", "c"], i) for i in range(3)]

    def work(one):
        rows = one.gathered({"x": np.arange(one.index, dtype=np.float32)})
        largest = one.decided(one.index, max)
        told, everybody = one.told(f"from {one.index}"), one.all_of(one.index)
        failed = []
        for error in (UsageError("it\ncannot be"), OSError("no room")):

            def refuse(error=error):
                raise error

            try:
                one.by_leader(refuse)
            except (UsageError, OSError) as found:
                failed.append((type(found), " ".join(str(found).split())))
        with pytest.raises(UsageError, match="rate = 2 in process 2, and 1 in process 0; start all"):
            one.agree({"same": [1.5], "rate": max(1, one.index)})
        return rows, largest, told, everybody, failed

    found = in_threads(joined, work)
    assert [x["x"].tolist() for x in found[0][0]] == [[], [0.0], [0.0, 1.0]]
    assert found[1][0] is found[2][0] is None
    for _, *rest in found:
        assert rest == [2, "from 0", [0, 1, 2], [(UsageError, "it cannot be"), (OSError, "no room")]]
    assert len(store.content) <= 3  # the last answers


def test_a_signal_reaches_all_and_who_is_silent_is_named(monkeypatch):
    store, ends, told = Store(), threading.Event(), []
    joined = [Joined(store, ["a", "b", "c"], i, timeout=2.5) for i in range(3)]

    def end(self, line, code, tell=True):
        told.append((self.index, line, code))
        self._leaving.set()
        if len(told) == 2:
            ends.set()

    monkeypatch.setattr(Joined, "_end", end)
    monkeypatch.setattr(hosts, "GRACE", 0.0)
    for one in joined:
        one.start()
    joined[1].report_signal(15)
    until = time.monotonic() + 10
    while {one.signal for one in joined} != {15} and time.monotonic() < until:
        time.sleep(0.02)
    assert {one.signal for one in joined} == {15}
    joined[2]._leaving.set()  # its threads end: nothing is heard of it any more
    assert ends.wait(15)
    assert {index for index, *_ in told} == {0, 1}
    assert {(line, code) for _, line, code in told} == {("process 2 of 3 (c) is lost: not heard of for 2.5 s", 1)}


def test_one_that_lives_but_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(hosts, "WAIT_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match=r"waited 0.2 s for process 1 of 2 \(b\), which lives but does not come"):
        Joined(Store(), ["a", "b"], 0).all_of(1)


def test_runs_are_laid_out_as_one_process_would(monkeypatch):
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    for processes, size, expected in (
        ([0, 0, 1, 1], 1, [(0, 4), (4, 8)]),
        ([0, 0, 1], 1, [(0, 4), (4, 6)]),
        ([0, 0, 1, 1], 2, [(0, 2), (2, 4)]),
        ([0, 1], 2, [(0, 3), (0, 3)]),
    ):
        runs = max(stop for _, stop in expected)
        for me in (0, 1):
            monkeypatch.setattr(jax, "process_index", lambda me=me: me)
            own = own_runs(runs, [Device(i) for i in processes], size)
            assert (own.start, own.stop) == expected[me]


def test_every_process_gets_devices_or_is_said_to_have_nothing_to_do(monkeypatch):
    devices = [types.SimpleNamespace(process_index=i // 2, platform="tpu") for i in range(6)]
    config, options = preset("a2c", "CartPole-v1"), HostOptions()
    three = Joined(Store(), ["a", "b", "c"], 0)
    hosts.use(three)
    try:
        assert len(options.place(config, 6, devices)) == 6
        with pytest.warns(
            UserWarning, match="4 runs on 3 devices, 2 on each, are for 2 of 3 processes, and the others"
        ):
            chosen = options.place(config, 4, devices)
        assert [device.process_index for device in chosen] == [0, 1, 2]
        with pytest.raises(UsageError, match="1 run on 1 device, 1 on each, are for 1 of 3 processes; start 1, train"):
            options.place(config, 1, devices)
    finally:
        hosts.use(Group())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_end_and_name_it_and_a_resumed_run_goes_on(tmp_path, victim):
    out, flags = tmp_path / "run", [*CHUNKS, "--num-seeds", "2"]
    both = start_all([*flags, "--out", out])
    until_saved(out, both)
    both[victim].kill()
    began = time.monotonic()
    (code, line), (killed, _) = ended([both[1 - victim], both[victim]], 60)
    assert time.monotonic() - began < 25
    assert (code, killed) == (1, -signal.SIGKILL)
    assert line.startswith(f"error: process {victim} of 2 (")
    assert " is lost" in line
    assert len(line.splitlines()) == 1
    assert f"the last checkpoint is whole: purejaxppo run --resume {out}" in line
    steps = int(steps_saved(out / "checkpoints")[-1].name)
    assert codes([start(["--resume", out, "--total-steps", str(steps + 32 * 400), "--quiet"], devices=2)]) == [0]


@pytest.mark.slow
def test_sigterm_to_any_saves_all_and_they_resume_on_as_many_processes_and_on_one(tmp_path):
    flags = [*SMALL, *"--num-seeds 2 --checkpoint-interval 200 --log-interval 200".split()]
    for victim in (0, 1):
        out = tmp_path / f"run{victim}"
        both = start_all([*flags, "--total-steps", "2e7", "--out", out])
        until_saved(out, both)
        both[victim].terminate()
        began = time.monotonic()
        found = ended(both, 60)
        assert time.monotonic() - began < 15
        assert [code for code, _ in found] == [143, 143]
        assert all("saved at update" in line for _, line in found)
        assert not (out / ".claim.json").exists()
    short = [
        "--total-steps",
        str(32 * 200 * (2 + max(int(x.name) for x in tmp_path.glob("run*/checkpoints/[0-9]*")) // 6400)),
    ]
    assert codes(start_all(["--resume", tmp_path / "run0", *short, "--quiet"])) == [0] * 2
    assert codes([start(["--resume", tmp_path / "run1", *short, "--quiet"], devices=2)]) == [0]
    assert_same(tmp_path / "run0", tmp_path / "run1")


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # as /proc/net has it


@pytest.mark.slow
def test_only_the_coordinator_listens_on_the_given_address_and_one_process_does_not(tmp_path):
    port = free_port()
    both = [start([*CHUNKS, "--num-seeds", "2", "--out", tmp_path / "run"], index=i, port=port) for i in (0, 1)]
    alone = start([*CHUNKS, "--num-seeds", "2", "--out", tmp_path / "alone"])
    until_saved(tmp_path / "run", both)
    until_saved(tmp_path / "alone", [alone])
    ports = [listening(process) for process in (*both, alone)]
    for process in (*both, alone):
        process.terminate()
    ended([*both, alone])
    assert ports[2] == []
    assert ports[1] == []
    (coordinator,) = ports[0]
    assert coordinator in [(address, port) for address in LOOPBACK]


@pytest.mark.slow
def test_processes_that_share_a_run_listen_to_each_other_on_the_given_address_only(tmp_path):
    port, flags = free_port(), [*CHUNKS, "--num-seeds", "1", "--mesh", "env=2", "--out", tmp_path / "run"]
    both = [start(flags, index=i, port=port) for i in (0, 1)]
    until_saved(tmp_path / "run", both)
    ports = [listening(process) for process in both]
    for process in both:
        process.terminate()
    ended(both)
    assert port in [found for _, found in ports[0]]
    assert {address for address, _ in ports[0] + ports[1]} <= LOOPBACK
    assert [len(found) for found in ports] == [2, 1]


@pytest.mark.slow
def test_other_settings_or_another_directory_are_refused_by_all(tmp_path):
    flags = [*SMALL, "--num-seeds", "2", "--total-steps", "64"]
    port, out = free_port(), tmp_path / "run"
    first = start([*flags, "--out", out], index=0, port=port)
    second = start([*flags, "--learning-rate", "0.1", "--out", out], index=1, port=port)
    for code, line in ended([first, second]):
        assert code == 2
        assert "learning_rate = 0.1 in process 1" in line
        assert len(line.splitlines()) == 1
    port = free_port()
    first, second = (start([*flags, "--out", tmp_path / f"run{i}"], index=i, port=port) for i in (0, 1))
    for code, line in ended([first, second]):
        assert code == 2
        assert "is not shared: process 1 on" in line
        assert len(line.splitlines()) == 1
    for code, line in ended(start_all([*flags[:-4], "--num-seeds", "1", "--out", tmp_path / "few"])):
        assert code == 2
        assert "1 run on 1 device, 1 on each, are for 1 of 2 processes; start 1, train more seeds" in line


@pytest.mark.slow
def test_two_processes_share_one_run_and_have_the_same_bits_as_two_devices(tmp_path):
    flags = [*SMALL, *"--num-seeds 1 --mesh env=2 --total-steps 3200 --log-interval 1 --checkpoint-interval 50".split()]
    flags += ["--debug"]  # which holds the replicas of both against each other
    alone, both = start([*flags, "--out", tmp_path / "one"], devices=2), start_all([*flags, "--out", tmp_path / "two"])
    assert ended([alone, *both]) == [(0, "")] * 3
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_three_processes_that_slurm_starts_are_one_run(tmp_path):
    flags = [*SMALL, *"--num-seeds 6 --total-steps 128 --checkpoint-interval 2".split()]
    slurm = {"JOB_ID": str(free_port()), "STEP_NODELIST": "127.0.0.1", "NTASKS": "3", "LOCALID": "0"}
    tasks = [{f"SLURM_{name}": value for name, value in (slurm | {"PROCID": str(i)}).items()} for i in range(3)]
    alone = start([*flags, "--out", tmp_path / "one"], devices=3)
    three = [start([*flags, "--out", tmp_path / "three"], **task) for task in tasks]
    assert ended([alone, *three]) == [(0, "")] * 4
    assert_same(tmp_path / "one", tmp_path / "three")
