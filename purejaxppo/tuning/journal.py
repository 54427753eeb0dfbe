"""The files of a study: what it is, the scores that it had, and the states that its trials go on from.

    tune.json     the settings, the space and the options: written once
    scores.json   of each lot, in order: its trials, their settings, and what came of them
    states/N/     a checkpoint of the states in which lot N left its trials, as long as one of them goes on

A lot counts once scores.json has it. The study itself follows from these scores, see `Search`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.errors import UsageError
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.files import SCORES, malformed, read_json, refusing, to_float, to_json, write_json
from purejaxppo.rundir.lock import check_claim
from purejaxppo.rundir.manifest import digest
from purejaxppo.rundir.snapshot import Arrays
from purejaxppo.tuning.search import Lot, Search


class Journal:
    """The lots of a study that are trained, and the states of its trials."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: list[dict[str, Any]] = []
        self.states: dict[int, Arrays] = {}  # of each trial under way
        self._lots: dict[int, int] = {}  # trial ↦ the lot that left its state

    def read(self) -> None:
        """Raises: UsageError: it is damaged."""
        path = self.directory / SCORES
        if not path.exists():
            return
        content = read_json(path)
        with refusing(path):
            entries = content["lots"]
            if content["sha256"] != digest(entries):
                raise malformed(path, "its SHA-256 is not what it says")
            for entry in entries:
                entry["returns"] = [[to_float(x) for x in own] for own in entry["returns"]]
            self.entries = entries

    def replay(self, make: Callable[[], Search], warn: Callable[[str], None]) -> Search:
        """The search as it was after the last lot whose states are whole.

        Raises:
            UsageError: the sampler draws other settings than it did.
        """
        while True:
            search = make()
            self._lots = {}
            for i, entry in enumerate(self.entries):
                self.tell(search, search.next_lot(), entry, i)
            try:
                self.states = self._read_states(search)
                return search
            except UsageError as error:
                warn(f"{error} Going on from before that lot")

    def add(self, search: Search, lot: Lot, returns: np.ndarray, steps: np.ndarray, states: list[Arrays]) -> None:
        """A lot that has just been trained: save its states, then count it, then tell the search."""
        i, last = len(self.entries), lot.rung + 1 == len(search.rungs.steps)
        check_claim(self.directory)
        if not last:
            kept = {f"trial{trial.number}": own for trial, own in zip(lot.trials, states, strict=True)}
            checkpoint.save(self.directory / "states" / str(i), kept, {"lot": i})
        settings = [trial.settings for trial in lot.trials]
        entry = {"trials": [trial.number for trial in lot.trials], "rung": lot.rung, "settings": to_json(settings)}
        entry |= {"returns": returns.tolist(), "evaluation_steps": steps.tolist()}
        self.entries.append(entry)
        self._write()
        self.tell(search, lot, entry, i)
        self.states |= {trial.number: own for trial, own in zip(lot.trials, states, strict=True)}

    def forget(self, search: Search) -> None:
        """Delete the states of trials that have ended."""
        self.states = {number: own for number, own in self.states.items() if number in search.needed}
        needed = {str(self._lots[number]) for number in self.states}
        for path in (self.directory / "states").glob("*"):
            if path.name not in needed and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def tell(self, search: Search, lot: Lot | None, entry: dict[str, Any], i: int) -> None:
        """Tell a search what the i-th lot came to. Raises: UsageError: it is not the lot that the search asks for."""
        path = self.directory / SCORES
        with refusing(path):
            drawn = lot and ([trial.number for trial in lot.trials], lot.rung, [trial.settings for trial in lot.trials])
            if lot is None or to_json(drawn) != [entry["trials"], entry["rung"], entry["settings"]]:
                raise UsageError(
                    f"{path}: lot {i} has other trials than the sampler draws here; resume with the versions of "
                    "Optuna and purejaxppo that began it."
                )
            returns = np.asarray(entry["returns"], np.float64).reshape(len(lot.trials), -1)
            search.tell(lot, returns.mean(axis=1), np.asarray(entry["evaluation_steps"], np.int64))
        self._lots |= {trial.number: i for trial in lot.trials}

    def _read_states(self, search: Search) -> dict[int, Arrays]:
        """Of trials that go on. Raises: UsageError: one is damaged; lots from it on are forgotten."""
        states: dict[int, Arrays] = {}
        for i in sorted({self._lots[number] for number in search.needed}):
            try:
                found = checkpoint.read(self.directory / "states" / str(i)).arrays
            except UsageError:
                self.entries = self.entries[:i]
                raise
            for name, x in found.items():
                trial, _, path = name.partition(".")
                states.setdefault(int(trial.removeprefix("trial")), {})[path] = x
        return {number: states[number] for number in search.needed}

    def _write(self) -> None:
        lots = to_json(self.entries)
        write_json(self.directory / SCORES, {"sha256": digest(lots), "lots": lots})
