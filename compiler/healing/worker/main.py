"""The worker's loop: train, report, save; one JSON line per event on stdout, one per answer on stdin."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

# ruff: noqa: TID251 (these are this package's own modules, under whatever name it was started)
from .channel import Channel, peak_rss_mb, write_npz
from .data import Batches
from .engine import Engine
from .optimizer import Flat, Optimizer, Settings

_STARTED = time.monotonic()
_PROGRESS_EVERY = 0.5  # seconds between two progress lines
_SAVE_EVERY = 120.0  # seconds between two checkpoints within an epoch
_RETRIES = 2  # diverged runs are rolled back and slowed down this often


class Run:
    """One healing run.

    Args:
        request: see `condensec.healing.client`.
        channel: to the parent.
    """

    def __init__(self, request: dict[str, Any], channel: Channel) -> None:
        self._request, self._channel = request, channel
        with np.load(request["weights"], allow_pickle=False) as stored:
            arrays = {name: stored[f"w{i}"] for i, name in enumerate(request["names"])}
        self._weights = Flat(arrays)
        self._gradients = self._weights.like()
        self._engine = Engine(
            Path(request["model"]), self._weights.views, self._gradients.views, int(request["threads"])
        )
        self._train = Batches(request["train"], int(request["batch"]), int(request["seed"]))
        self._val = Batches(request["validation"], int(request["batch"]), 0)
        self._epochs: float | None = request.get("epochs")
        self._seconds: float | None = request.get("seconds")
        self._settings = Settings.of(request["optimizer"])
        self._optimizer = self._new_optimizer()
        self._state = Path(request["state"])
        self._epoch = self._position = self._round = self._retries = 0
        # Seconds used in this and earlier processes, this one's start included.
        self._spent = time.monotonic() - _STARTED
        self._stepped, self._stepping = 0, 0.0  # steps and their seconds in this process
        self._told = 0.0
        self._losses: list[float] = []
        self._validated = 0.0
        self._value = math.inf

    def _new_optimizer(self) -> Optimizer:
        total = self._train.steps * (self._epochs or 10)
        decay = 1 - 1 / max(10.0, min(2000.0, total / 20))
        return Optimizer(self._weights, self._gradients, self._settings, decay)

    def go(self) -> None:
        """Train until the budget is used or the parent says stop."""
        self._resume()
        stop = False
        if self._round == 0:
            stop = self._close_round()
        elif self._round_file(self._round - 1).exists():  # the parent never heard of it
            stop = self._tell_round(self._round - 1)
        self._good = self._copy_of_state()
        while not stop and not self._is_over():
            if self._train_round():
                stop = self._close_round()
        self._channel.send("done", steps=self._optimizer.step_count, seconds=self._spent, rate=self._rate())

    def _copy_of_state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._optimizer.state().items()}

    def _round_file(self, number: int) -> Path:
        return self._state / f"round-{number}.npz"

    def progress(self) -> float:
        """Share of the budget used, in [0, 1]."""
        if self._seconds is not None:
            return min(1.0, self._spent / max(self._seconds - self._reserve(), 1e-3))
        done = self._epoch + self._position / self._train.steps
        return min(1.0, done / max(self._epochs or 1, 1e-9))

    def _reserve(self) -> float:
        """Seconds the last validation will take."""
        return 1.2 * self._validated

    def _is_over(self) -> bool:
        return self.progress() >= 1.0

    def _train_round(self) -> bool:
        """Train up to the next validation; False if the run diverged and was rolled back."""
        begun = saved = last = time.monotonic()
        target = self._round_seconds()
        for batch in self._train.epoch(self._epoch, self._position):
            loss = self._engine.step(batch)
            norm = self._optimizer.gradient_norm()
            if not math.isfinite(loss) or not math.isfinite(norm):
                self._roll_back()
                return False
            self._optimizer.step(self.progress(), norm)
            self._losses.append(loss)
            self._position += 1
            now = time.monotonic()
            self._spent += now - last
            self._stepping += now - last
            self._stepped += 1
            last = now
            if now - self._told > _PROGRESS_EVERY:
                self._told = now
                self._report(now - begun)
            if now - saved > _SAVE_EVERY:
                saved = now
                self._save()
            if self._is_over() or now - begun > target:
                break
        if self._position >= self._train.steps:
            self._epoch, self._position = self._epoch + 1, 0
        return True

    def _rate(self) -> float:
        """Samples a second, of the steps of this process alone."""
        return self._stepped * self._train.size / max(self._stepping, 1e-9)

    def _round_seconds(self) -> float:
        """A timed run is validated some ten times, but not more than a tenth of the time."""
        if self._seconds is None:
            return math.inf
        return max(self._seconds / 10, 10 * self._validated, 1.0)

    def _report(self, seconds: float) -> None:
        recent = self._losses[-20:]
        share = self.progress()
        left = self._spent * (1 - share) / share if share > 0 else math.inf
        self._channel.send(
            "progress",
            epoch=self._epoch,
            step=self._optimizer.step_count,
            loss=sum(recent) / len(recent),
            share=share,
            left=left if math.isfinite(left) else None,
            rate=self._rate(),
        )

    def _close_round(self) -> bool:
        """Validate the averaged weights, save, ask the parent; True to stop."""
        begun = time.monotonic()
        average = Flat(self._weights.views)
        average.buffer[:] = self._optimizer.average
        self._value = self._validate(average)
        if not math.isfinite(self._value) and self._round:
            self._roll_back()
            return self._retries > _RETRIES
        write_npz(
            self._round_file(self._round), {f"w{i}": view for i, view in enumerate(average.views.values())}
        )
        self._good = self._copy_of_state()
        self._round += 1
        self._validated = time.monotonic() - begun
        self._spent += self._validated
        self._save()
        return self._tell_round(self._round - 1)

    def _tell_round(self, number: int) -> bool:
        recent, self._losses = self._losses, []
        answer = self._channel.ask(
            "round",
            number=number,
            epoch=self._epoch + self._position / self._train.steps,
            step=self._optimizer.step_count,
            train_loss=sum(recent) / len(recent) if recent else None,
            validation_loss=self._value,
            weights=str(self._round_file(number)),
            share=self.progress(),
            seconds=self._spent,
            rate=self._rate(),
            rss=peak_rss_mb(),
        )
        self._spent += float(answer.get("seconds", 0.0))
        self._validated += float(answer.get("seconds", 0.0))
        return answer.get("do") == "stop"

    def _validate(self, weights: Flat) -> float:
        total = 0.0
        told = time.monotonic()
        for batch, new in self._val.in_order():
            total += new * self._engine.loss(batch, weights.views)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                self._channel.send("alive")
        return total / self._val.count

    def _roll_back(self) -> None:
        """After a loss that isn't a number: back to the last validated weights, a third of the step."""
        self._retries += 1
        self._channel.send("diverged", step=self._optimizer.step_count, retries=self._retries)
        if self._retries > _RETRIES:
            self._epochs, self._seconds = 0.0, None  # over
            return
        keep = self._good
        self._settings = Settings.of({**vars_of(self._settings), "lr": self._settings.lr / 3})
        self._optimizer = self._new_optimizer()
        self._optimizer.restore({**keep, "first": 0 * keep["first"], "second": 0 * keep["second"]})
        self._epoch, self._position = self._epoch + 1, 0  # other batches than those it failed on

    def _save(self) -> None:
        meta = {
            "fingerprint": self._request["fingerprint"],
            "epoch": self._epoch,
            "position": self._position,
            "round": self._round,
            "spent": self._spent,
            "validated": self._validated,
            "value": self._value if math.isfinite(self._value) else None,
            "retries": self._retries,
            "lr": self._settings.lr,
        }
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        write_npz(self._state / "checkpoint.npz", {**self._optimizer.state(), "meta": text})

    def _resume(self) -> None:
        """Take up an unfinished run with the same fingerprint."""
        path = self._state / "checkpoint.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
            meta = json.loads(state.pop("meta").tobytes())
        except (OSError, ValueError, KeyError, EOFError):
            return
        if meta.get("fingerprint") != self._request["fingerprint"]:
            return
        self._settings = Settings.of({**vars_of(self._settings), "lr": meta["lr"]})
        self._optimizer = self._new_optimizer()
        self._optimizer.restore(state)
        self._epoch, self._position, self._round = meta["epoch"], meta["position"], meta["round"]
        self._spent += meta["spent"]
        self._retries = meta["retries"]
        self._validated = meta["validated"]
        self._value = math.inf if meta["value"] is None else meta["value"]
        self._channel.send("resumed", epoch=self._epoch, step=self._optimizer.step_count, round=self._round)


def vars_of(settings: Settings) -> dict[str, Any]:
    """A settings object as a dictionary."""
    return {name: getattr(settings, name) for name in Settings.__dataclass_fields__}


def main(arguments: list[str]) -> int:
    """Entry point: `main([request.json])`; the exit code is 0 when the run came to its end."""
    channel = Channel()
    try:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        channel.send("started", pid=os.getpid())
        run = Run(request, channel)
        channel.send("ready", rss=peak_rss_mb())
        run.go()
    except MemoryError:
        channel.send("failed", message="out of memory")
        return 4
    except Exception as error:
        text = " ".join(str(error).split())
        memory = "bad_alloc" in text or "Failed to allocate memory" in text
        channel.send(
            "failed", message="out of memory" if memory else f"{type(error).__name__}: {text}"[-600:]
        )
        return 4 if memory else 1
    return 0
