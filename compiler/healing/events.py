"""What is answered to the worker's events, and what a user is told of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from condensec.errors import CondensecError, HealError
from condensec.healing import gradient_graph
from condensec.healing.client import Event
from condensec.healing.judge import Judge
from condensec.healing.options import Round

Progress = Callable[[float, str], None]  # share of the work done in [0, 1], what is going on


def improve(event: Event) -> Mapping[str, Any]:
    """The worker's gradient graph, rewritten in place."""
    return {"changed": gradient_graph.improve(Path(event["file"]), int(event.get("block", 0)))}


def on_round(judge: Judge, say: Progress) -> Callable[[Event], Mapping[str, Any]]:
    """Each round is judged; the answer says whether to go on."""

    def handle(event: Event) -> Mapping[str, Any]:
        begun = time.monotonic()
        try:
            done: Round = judge.round(event)
        except CondensecError as error:
            raise HealError(f"the healed student can't be judged: {error}") from error
        score = f"loss {done.validation_loss:.4g}" if done.metric is None else f"metric {done.metric:.4f}"
        say(float(event["share"]), f"epoch {done.epoch:.2f}: {score} on validation")
        stop = "stop" if judge.is_exhausted() else "go on"
        return {"do": stop, "seconds": time.monotonic() - begun}

    return handle


def pass_on(say: Progress) -> dict[str, Callable[[Event], None]]:
    """The other events are told."""

    def progress(event: Event) -> None:
        text = f"epoch {event['epoch']}: loss {event['loss']:.4g}, {event['rate']:.0f} samples/s"
        say(float(event["share"]), text)

    def probed(event: Event) -> None:
        say(0.0, f"a step of {100 * float(event['lr']):.2g}% of each weight's size, by short runs")

    def resumed(event: Event) -> None:
        say(0.0, f"going on from step {event['step']}")

    def diverged(event: Event) -> None:
        say(0.0, f"diverged at step {event['step']}: rolled back, slower")

    def slower(event: Event) -> None:
        say(0.0, f"training the plain way: the faster one {event['why']}")

    return {
        "slower": slower,
        "progress": progress,
        "probed": probed,
        "resumed": resumed,
        "diverged": diverged,
    }
