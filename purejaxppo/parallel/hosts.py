"""Several processes that train together: what they tell each other, and how all end when one does.

A process by itself is a `Group` of one, which waits for nobody. `joining.py` makes the others, on the key-value store
of JAX's distributed runtime: JSON under keys, no device involved. Process 0 leads. Every wait ends: with an answer,
with a line that names whom it waited for, or with the process, because another one has ended or is lost.
"""

import base64
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np

from purejaxppo.errors import UsageError
from purejaxppo.parallel.places import LOST_SECONDS

T = TypeVar("T")
WAIT_SECONDS = 1800.0  # for a process that lives: one may compile for longer than another, or draw figures
GRACE = 2.0  # seconds for a process to say itself why it ends, when another one says so too
LEAVE_SECONDS = 8.0  # that process 0, at whose end the store ends, waits for the others to read why


class Group:
    """A process by itself."""

    count = 1  # processes
    index = 0  # of this one
    signal = 0  # that a process of the group has received; 0: none
    way_out: Callable[[], str] = staticmethod(lambda: "")  # how to go on when a process is lost

    @property
    def leads(self) -> bool:
        return self.index == 0

    def gathered(self, value: T) -> list[T] | None:
        """The values of all, in the processes' order, for process 0; None for the others, which do not wait."""
        return [value]

    def decided(self, value: T, decide: Callable[[list[T]], Any]) -> Any:
        """What process 0 makes of the values of all; an exception that it raises is raised in all."""
        return decide([value])

    def told(self, value: T) -> T:
        """The value of process 0."""
        return self.by_leader(lambda: value)

    def all_of(self, value: T) -> list[T]:
        return self.decided(value, lambda values: values)

    def by_leader(self, work: Callable[[], T]) -> T:
        """`work()`, done by process 0 alone, when all have come so far."""
        return self.decided(None, lambda _: work())

    def agree(self, values: dict[str, Any]) -> None:
        """Raises: UsageError: a value differs between processes."""
        mine = decode(encode(values))
        theirs, line = self.told(mine), ""
        if name := next((name for name in mine if mine[name] != theirs.get(name)), ""):
            line = f"{name} = {mine[name]!r:.80} in process {self.index}, and {theirs.get(name)!r:.80} in process 0"
        if found := next((line for line in self.all_of(line) if line), ""):
            raise UsageError(f"{found}; start all processes with the same flags.")

    def report_signal(self, signum: int) -> None:
        """Let all know that this process has received a signal."""

    def await_loss(self) -> None:
        """After an error that another process's loss may have caused: it shall be named, which ends this process."""

    def begin_to_leave(self) -> None:
        """From here on, this process says itself why it ends."""

    def leave(self, line: str, code: int) -> None:
        """Before this process ends; with a code, the others end with it, too."""


_present = [Group()]


def group() -> Group:
    """The processes that this one trains together with."""
    return _present[0]


def use(joined: Group) -> None:
    """From here on, `group` returns these."""
    _present[0] = joined


class Joined(Group):
    """One of several processes; `client` is JAX's, of the store, which process 0 keeps."""

    def __init__(self, client: Any, names: list[str], index: int, timeout: float = LOST_SECONDS) -> None:
        """`names` [count] say where each process is; one that is silent for `timeout` seconds is lost."""
        self.count, self.index = len(names), index
        self._client, self._names, self._timeout = client, names, timeout
        self._turn, self._told, self._code = 0, list[str](), 1
        self._ending, self._leaving = threading.Lock(), threading.Event()
        self._heard, self._unsent = time.monotonic(), 0

    def start(self) -> None:
        """Listen to the others from here on."""
        for work in (self._listen, self._judge):
            threading.Thread(target=work, name=f"hosts{work.__name__}", daemon=True).start()

    def named(self, index: int) -> str:
        return f"process {index} of {self.count} ({self._names[index]})"

    def gathered(self, value: T) -> list[T] | None:
        self._turn += 1
        self._call("key_value_set", f"{self._turn}/{self.index:06}", encode(value))
        return self._collect() if self.leads else None

    def decided(self, value: T, decide: Callable[[list[T]], Any]) -> Any:
        values = self.gathered(value)
        key = f"{self._turn}/told"
        if values is None:
            answer = self._wait(key, 0)
            if "error" in answer:
                kind = UsageError if answer["usage"] else OSError
                raise kind(answer["error"])
            return answer["value"]
        try:
            answer = {"value": decide(values)}
        except Exception as error:
            failed = {"error": " ".join(str(error).split()), "usage": isinstance(error, UsageError)}
            self._call("key_value_set", key, encode(failed))
            raise
        self._call("key_value_set", key, encode(answer))
        self._told.append(key)
        return answer["value"]

    def _call(self, name: str, *arguments: str) -> Any:
        """A call of the store, without which this process cannot go on."""
        try:
            return getattr(self._client, name)(*arguments)
        except RuntimeError:  # as JAX says that it is not there
            self._coordinator_lost()

    def _collect(self) -> list[Any]:
        """What all have put into the store for this turn, which is taken out of it."""
        prefix = f"{self._turn}/"
        while len(found := dict(self._call("key_value_dir_get", prefix))) < self.count:
            keys = [f"{prefix}{i:06}" for i in range(self.count)]
            missing = next(i for i, key in enumerate(keys) if key not in found)
            self._wait(keys[missing], missing)
        self._call("key_value_delete", prefix)
        while self._told:  # all have read what was told them before this turn
            self._call("key_value_delete", self._told.pop())
        return [decode(found[key]) for key in sorted(found)]

    def _wait(self, key: str, whom: int) -> Any:
        """Raises: OSError: a process that lives has not come so far in time."""
        ends = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < ends:
            if (text := self._get(key)) is not None:
                return decode(text)
        raise TimeoutError(f"waited {WAIT_SECONDS:g} s for {self.named(whom)}, which lives but does not come so far")

    def _get(self, key: str) -> str | None:
        """None if it is not there within a second: a wait is cut into such parts, so that signals are seen."""
        try:
            return str(self._client.blocking_key_value_get(key, 1000))
        except RuntimeError as error:  # as JAX says it
            if "DEADLINE_EXCEEDED" not in str(error):
                self._coordinator_lost()
            return None

    def report_signal(self, signum: int) -> None:
        self._unsent = self._unsent or signum  # sent by the thread that listens: this is called by a signal's handler

    def await_loss(self) -> None:
        self._leaving.wait(self._timeout + 2 * GRACE)

    def begin_to_leave(self) -> None:
        self._leaving.set()

    def leave(self, line: str, code: int) -> None:
        self._code = code
        self._leaving.set()
        with contextlib.suppress(RuntimeError):  # the store may be gone already
            if code:
                self._post({"from": self.index, "line": line, "code": code})
            self._wait_until_left(LEAVE_SECONDS if code else self._timeout)

    def _wait_until_left(self, patience: float) -> None:
        """Process 0 goes last, as the store goes with it."""
        self._client.key_value_set(f"left/{self.index}", "")
        ends = time.monotonic() + patience
        while self.leads and time.monotonic() < ends and len(self._client.key_value_dir_get("left/")) < self.count:
            time.sleep(0.02)

    def _post(self, news: dict[str, Any]) -> None:
        number = 0
        while True:
            try:
                self._client.key_value_set(f"news/{number}", encode(news))
                return
            except RuntimeError as error:
                if "ALREADY_EXISTS" not in str(error):
                    raise
                number += 1

    def _listen(self) -> None:
        """A thread: say that this process lives, and hear what the others say."""
        read, beats, heard = 0, 0, {i: ("", time.monotonic()) for i in range(self.count)}
        while not self._leaving.is_set():
            try:
                self._client.key_value_set(f"alive/{self.index}", str(beats), allow_overwrite=True)
                if self._unsent and not self.signal:
                    self._post({"signal": self._unsent})
                if self.leads:
                    self._look_for_lost(heard)
            except RuntimeError:
                self._coordinator_lost()
            text, beats, self._heard = self._get(f"news/{read}"), beats + 1, time.monotonic()
            if text is not None:
                read += 1
                self._take(decode(text))

    def _look_for_lost(self, heard: dict[int, tuple[str, float]]) -> None:
        now, beats = time.monotonic(), dict(self._client.key_value_dir_get("alive/"))
        for i in range(1, self.count):
            beat = beats.get(f"alive/{i}", "")
            if beat != heard[i][0]:
                heard[i] = beat, now
            elif now - heard[i][1] > self._timeout:
                line = f"{self.named(i)} is lost: not heard of for {self._timeout:g} s"
                self._post({"from": i, "line": line, "code": 1, "lost": True})
                self._client.key_value_set(f"left/{i}", "", allow_overwrite=True)
                return

    def _take(self, news: dict[str, Any]) -> None:
        """Of what another process says: a signal is everybody's; where one has ended, all do."""
        if "signal" in news:
            self.signal = self.signal or news["signal"]
            return
        if news["from"] == self.index or self._leaving.wait(GRACE):
            return
        what = "" if news.get("lost") else f"{self.named(news['from'])} has ended: "
        self._end(what + news["line"], news["code"])

    def _judge(self) -> None:
        """A thread: the one that listens may itself be waiting for process 0, where a whole machine is lost."""
        while not self._leaving.wait(1.0):
            if time.monotonic() - self._heard > self._timeout:
                self._coordinator_lost()

    def _coordinator_lost(self) -> NoReturn:
        self._end(f"{self.named(0)} is lost, and with it the coordinator", 1, tell=False)

    def _end(self, line: str, code: int, tell: bool = True) -> NoReturn:
        """Say why, and end this process, whatever its other threads wait for."""
        with self._ending:
            if self._leaving.is_set():  # it has said why itself
                os._exit(self._code)
            self._leaving.set()
            advice = self.way_out()
            kind = "stopped" if code > 128 else "error"
            line = " ".join(f"{kind}: {line}{'; ' if advice else ''}{advice}".split())
            with contextlib.suppress(OSError, ValueError):
                print(line, file=sys.stderr, flush=True)
            with contextlib.suppress(RuntimeError):
                if tell:
                    self._wait_until_left(LEAVE_SECONDS)
            os._exit(code)


def encode(value: Any) -> str:
    """JSON, in which arrays are their bytes."""

    def array(x: Any) -> Any:
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise TypeError(f"{x.dtype} cannot be told")
        return {"dtype": x.dtype.str, "shape": x.shape, "base64": base64.b64encode(x.tobytes()).decode()}

    return json.dumps(value, default=array)


def decode(text: str) -> Any:
    def array(x: dict[str, Any]) -> Any:
        if x.keys() != {"dtype", "shape", "base64"}:
            return x
        return np.frombuffer(base64.b64decode(x["base64"]), np.dtype(x["dtype"])).reshape(x["shape"])

    return json.loads(text, object_hook=array)
