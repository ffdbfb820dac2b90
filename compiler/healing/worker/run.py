"""The worker's loop: train, report, save; one JSON line per event on stdout, one per answer on stdin."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# ruff: noqa: TID251 (these are this package's own modules, under whatever name it was started)
from . import blocks, probe
from .channel import Channel, peak_rss_mb, write_npz
from .clock import Clock
from .data import Batches, Files, Kinds, Stream
from .engine import Engine, Engines
from .norms import Norms
from .optimizer import Flat, Optimizer, Settings
from .zeros import TRIED, UNTIL, Zeros

_PROGRESS_EVERY = 0.5  # seconds between two progress lines
_SAVE_EVERY = 15.0  # seconds between two checkpoints within a round, at least; and
_SAVE_SHARE = 0.02  # of the time, at most
_MOST_BYTES = 1 << 29  # of a gradient graph that is worth writing and reading once more
_RETRIES = 2  # diverged runs are rolled back and slowed down this often


class Run:
    """One healing run.

    Args:
        request: see `condensec.healing.session`.
        channel: to the parent.
    """

    def __init__(self, request: dict[str, Any], channel: Channel) -> None:
        self._request, self._channel = request, channel
        with np.load(request["weights"], allow_pickle=False) as stored:
            arrays = {name: stored[f"w{i}"] for i, name in enumerate(request["names"])}
        self._weights = Flat(arrays)
        self._gradients = self._weights.like()
        parts: tuple[str, ...] = ("model", "behind", "before", "normalized")
        files = {part: Path(request[part]) for part in parts if part in request}
        graphs = [*({"model": Path(path)} for path in request.get("shorter", [])), files]
        batch, seed = int(request["batch"]), int(request["seed"])
        self._engine = Engines(
            [
                Engine(
                    graph,
                    self._weights.views,
                    self._gradients.views,
                    int(request["threads"]),
                    int(request["part"]),
                    batch,
                    self._improved,
                    lambda why: channel.send("slower", why=why),
                )
                for graph in graphs
            ]
        )
        kinds = Kinds.asked(request, "train")
        steps = max(1, int(request["samples"]) // batch) if kinds is None else kinds.steps(batch)
        self._stream = Stream(self._files, steps, batch, seed, kinds)
        self._val = Batches(request["validation"], batch, 0, Kinds.asked(request, "validation"))
        self._norms = Norms.of(request, self._weights)
        self._clock = Clock(request.get("epochs"), request.get("seconds"), self._stream, self._val)
        self._lr: float | None = request["optimizer"]["lr"]
        self._settings = Settings.of({**request["optimizer"], "lr": self._lr or probe.DEFAULT})
        self._zeros = Zeros.of(request, self._weights)
        self._optimizer = Optimizer(
            self._weights,
            self._gradients,
            self._settings,
            self._decay(steps * (request.get("epochs") or 10)),
            self._zeros.reach(0.0),
            int(request["threads"]),
        )
        self._state = Path(request["state"])
        self._round = self._retries = 0
        self._stepped, self._stepping = 0, 0.0  # steps and their seconds in this process
        self._told = 0.0
        self._losses = [0.0, 0.0]  # sum and number since the last round
        self._recent: deque[float] = deque(maxlen=20)
        self._value = math.inf

    def _improved(self, model: bytes) -> bytes:
        """The gradient graph, as the parent (which can read graphs) writes it anew."""
        if len(model) > _MOST_BYTES:
            return model
        path = Path(self._request["state"]) / "gradient.onnx"
        path.write_bytes(model)
        block = blocks.size(self._request.get("trials", {}))
        self._channel.ask("gradient", file=str(path), block=block)
        model = path.read_bytes()
        path.unlink()
        return model

    def _files(self, epoch: int) -> Files:
        """Where an epoch's samples are; with augmentation the parent makes them, epoch by epoch."""
        files: Files | None = self._request.get("train")
        return files if files is not None else self._channel.ask("view", epoch=epoch)["files"]

    def _decay(self, total: float) -> float:
        """Of the average: it reaches back over a twentieth of the run."""
        given = self._request.get("average")
        return float(given) if given is not None else 1 - 1 / max(10.0, min(2000.0, total / 20))

    def go(self) -> None:
        """Train until the budget is used or the parent says stop."""
        self._resume()
        stop = False
        if self._round == 0:
            stop = self._close_round()
        elif self._round_file(self._round - 1).exists():  # the parent never heard of it
            stop = self._tell_round(self._round - 1)
        if not stop and self._lr is None:
            self._find_rate()
        self._good = self._copy_of_state()
        while not stop and not self._clock.is_over():
            if self._train_round():
                stop = self._close_round()
        self._channel.send(
            "done",
            steps=self._optimizer.step_count,
            seconds=self._clock.spent,
            rate=self._rate(),
            lr=self._lr,
        )

    def _copy_of_state(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._optimizer.state().items()}

    def _round_file(self, number: int) -> Path:
        return self._state / f"round-{number}.npz"

    # -- training ---------------------------------------------------------------------------------------

    def _find_rate(self) -> None:
        """Try a few step sizes; the start is as it was afterwards."""
        begun = self._clock.spent
        whole = self._weights.buffer.copy()
        self._optimizer.fix(self._zeros.reach(TRIED * UNTIL))  # steps are found for the network with zeros
        start = self._weights.buffer.copy()
        latest = begun + probe.LATEST * self._clock.left
        total = self._total_steps()
        rates, steps = probe.plan(total, normalized=self._norms is not None)
        bench = probe.Bench(self._engine, self._optimizer, self._stream, self._shipped, self._val)
        trials: list[probe.Trial] = []
        for rate in rates:
            settings = replace(self._settings, lr=rate, warmup=0.2)
            trial = bench.tried(settings, steps, start, lambda: self._clock.spent > latest)
            self._channel.send("alive")
            if trial is None:
                break
            trials.append(trial)
        if len(trials) > 1:
            self._lr = probe.choose(trials, bench.loss_on_few(start), steps, total)
            losses = [(t.lr, t.loss if math.isfinite(t.loss) else None) for t in trials]
            seconds = self._clock.spent - begun
            self._channel.send("probed", lr=self._lr, losses=losses, steps=steps, seconds=seconds)
        else:
            self._lr = probe.DEFAULT
        self._settings = self._optimizer.settings = replace(self._settings, lr=self._lr)
        self._stream.seek(0, 0)
        self._optimizer.restart(whole)
        self._optimizer.fix(self._zeros.reach(0.0))
        self._save()

    def _total_steps(self) -> float:
        """Steps of the whole run; where the clock decides, as the second step's time has it."""
        if self._clock.seconds is None:
            return self._stream.steps * self._clock.epochs
        self._engine.step(self._stream.next())
        begun = time.monotonic()
        self._engine.step(self._stream.next())
        a_step = time.monotonic() - begun
        total = self._clock.left / max(a_step, 1e-6)
        self._optimizer.decay = self._decay(total)
        return total

    def _train_round(self) -> bool:
        """Train up to the next validation; False if the run diverged and was rolled back."""
        begun = saved = time.monotonic()
        saving = 0.0
        while True:
            batch = self._stream.next()
            last = time.monotonic()
            loss = self._engine.step(batch)
            norm = self._optimizer.gradient_norm()
            if not math.isfinite(loss) or not math.isfinite(norm):
                self._roll_back()
                return False
            share = self._clock.share()
            self._optimizer.step(share, norm)
            if self._zeros.is_due(share):
                self._optimizer.fix(self._zeros.reach(share))
            self._note(loss)
            now = time.monotonic()
            self._stepping += now - last
            self._stepped += 1
            if now - self._told > _PROGRESS_EVERY:
                self._told = now
                self._report()
            if self._clock.is_round_over(begun):
                return True
            if now - saved > max(_SAVE_EVERY, saving / _SAVE_SHARE):
                self._save()
                saved = time.monotonic()
                saving = saved - now

    def _note(self, loss: float) -> None:
        self._losses[0] += loss
        self._losses[1] += 1
        self._recent.append(loss)

    def _rate(self) -> float:
        """Samples a second, of the steps of this process alone."""
        return self._stepped * self._val.size / max(self._stepping, 1e-9)

    def _report(self) -> None:
        self._channel.send(
            "progress",
            epoch=self._stream.epoch,
            step=self._optimizer.step_count,
            loss=sum(self._recent) / len(self._recent),
            share=self._clock.share(),
            rate=self._rate(),
        )

    # -- validation -------------------------------------------------------------------------------------

    def _close_round(self) -> bool:
        """Validate the averaged weights, save, ask the parent; True to stop."""
        begun = time.monotonic()
        if self._clock.is_over() and not self._zeros.complete:
            self._optimizer.fix(self._zeros.reach(1.0))
        average = self._shipped(self._optimizer.average)
        self._value = self._validate(average)
        if not math.isfinite(self._value) and self._round:
            self._roll_back()
            return self._retries > _RETRIES
        write_npz(
            self._round_file(self._round), {f"w{i}": view for i, view in enumerate(average.views.values())}
        )
        self._good = self._copy_of_state()
        self._round += 1
        self._save()
        stop = self._tell_round(self._round - 1)
        self._clock.validation_took(time.monotonic() - begun)
        return stop

    def _shipped(self, buffer: np.ndarray) -> Flat:
        """Weights as the file has them; others behind them are nobody's."""
        if self._norms is not None:
            return self._norms.folded(buffer, begun=self._optimizer.step_count > 0)
        found = self._weights.like()
        found.buffer[:] = buffer
        return found

    def _tell_round(self, number: int) -> bool:
        (total, count), self._losses = self._losses, [0.0, 0.0]
        answer = self._channel.ask(
            "round",
            number=number,
            epoch=self._stream.done / self._stream.steps,
            step=self._optimizer.step_count,
            train_loss=total / count if count else None,
            validation_loss=self._value,
            weights=str(self._round_file(number)),
            share=self._clock.share(),
            seconds=self._clock.spent,
            rate=self._rate(),
            rss=peak_rss_mb(),
            whole=self._zeros.complete,
        )
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
            self._clock.end()
            return
        self._lr = (self._lr or probe.DEFAULT) / 3
        self._settings = self._optimizer.settings = replace(self._settings, lr=self._lr)
        keep = self._good
        self._optimizer.restore({**keep, "first": 0 * keep["first"], "second": 0 * keep["second"]})
        self._stream.seek(self._stream.epoch + 1, 0)  # other batches than those it failed on
        self._optimizer.fix(self._zeros.reach(self._clock.share()))  # the weights are older than those

    # -- checkpoints ------------------------------------------------------------------------------------

    def _save(self) -> None:
        meta = {
            "fingerprint": self._request["fingerprint"],
            "epoch": self._stream.epoch,
            "position": self._stream.position,
            "round": self._round,
            "spent": self._clock.spent,
            "validated": self._clock.validated,
            "value": self._value if math.isfinite(self._value) else None,
            "retries": self._retries,
            "lr": self._lr,
            "decay": self._optimizer.decay,
            "losses": self._losses,
            "level": self._zeros.level,
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
        self._lr = meta["lr"]
        self._settings = self._optimizer.settings = replace(self._settings, lr=self._lr or probe.DEFAULT)
        self._optimizer.decay = meta["decay"]
        self._optimizer.restore(state)
        self._optimizer.fix(self._zeros.again(meta["level"]))
        self._stream.seek(meta["epoch"], meta["position"])
        self._round, self._retries, self._losses = meta["round"], meta["retries"], meta["losses"]
        self._clock.earlier = meta["spent"]
        self._clock.validation_took(meta["validated"])
        self._value = math.inf if meta["value"] is None else meta["value"]
        self._channel.send(
            "resumed", epoch=self._stream.epoch, step=self._optimizer.step_count, round=self._round
        )
