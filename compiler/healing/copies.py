"""Training copies of a student: for one part of a batch, and for each shorter length of padded samples.

How many samples a part has, what is compared, and whether the copy is normalized are decided here, by what
the teacher gives on a few samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.data.side import side_inputs
from condensec.errors import HealError
from condensec.healing import features, lengths, losses, parts, targets
from condensec.healing.features import Slices
from condensec.healing.lengths import Lengths
from condensec.healing.options import HealOptions
from condensec.healing.request import Shorter
from condensec.healing.side import ports, settled
from condensec.healing.training import Choose, Training, prepare

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples
    from condensec.healing.graph import Graph
    from condensec.healing.lengths import Compared

BROKEN = 0.3  # of the outputs' variance: what a student is off by where batch normalization pays


@dataclass(frozen=True)
class Models:
    """Student and teacher.

    Attributes:
        student: the student.
        path: its file.
        teacher: the teacher's file.
        slices: of the plan.
    """

    student: onnx.ModelProto
    path: Path
    teacher: Path
    slices: Slices


@dataclass(frozen=True)
class Copies:
    """What the worker trains.

    Attributes:
        training: the training graph for one part of a batch.
        part: samples in it.
        batch: samples in a batch.
        pace: the teacher's seconds a sample.
        padded: lengths that samples are cut to; None where all have one.
        shorter: the training graphs of all but the full length.
    """

    training: Training
    part: int
    batch: int
    pace: float
    padded: Lengths | None = None
    shorter: list[Training] = field(default_factory=list)

    def lengths(self, splits: Mapping[str, Samples]) -> Shorter:
        """What a request says of the shorter lengths, and which of them a sample has."""
        padded = self.padded
        kinds = {name: padded.kinds(samples) for name, samples in splits.items()} if padded else {}
        return Shorter(self.shorter, kinds)


def sizes(student: onnx.ModelProto, train: Samples, options: HealOptions) -> tuple[int, int]:
    """Samples of a part and of a whole batch, before the copy is known."""
    return parts.sizes(student, max(1, min(options.batch, len(train))), options.jobs)


def made(models: Models, train: Samples, options: HealOptions, *, augmented: bool) -> Copies:
    """The copies of a student.

    Args:
        models: student and teacher.
        train: all training samples.
        options: settings.
        augmented: samples are changed while training, so that nothing is known of their padding.

    Raises:
        HealError: student and teacher have no output in common, or the student can't be trained.
    """
    part, batch = sizes(models.student, train, options)
    outputs = targets.shared_outputs(models.student, models.teacher)
    answers, pace = targets.sample(models.teacher, train, outputs, options.jobs)
    maker = _Maker(models, train, answers, options)
    training = maker.whole(part)
    fitting = parts.fitting(models.student, training.model, part)
    if fitting != part:
        part, training = fitting, maker.whole(fitting)
    padded = None if augmented else lengths.find(models.student, train, batch)
    shorter = [] if padded is None else maker.shorter(training, part, padded)
    if shorter or not maker.pays(training):  # shorter ones have other means
        training = replace(training, normalized=None)
    return Copies(training, part, batch, pace, padded if shorter else None, shorter)


@dataclass(frozen=True)
class _Maker:
    """Makes training graphs.

    Attributes:
        models: student and teacher.
        train: training samples.
        answers: the teacher's on a few of them.
        options: settings.
    """

    models: Models
    train: Samples
    answers: Mapping[str, np.ndarray]
    options: HealOptions

    def whole(self, part: int) -> Training:
        """The graph for one part of a batch, of ``part`` samples."""
        within = (self.options.losses or {}).get(losses.FEATURES, 0.0)

        def choose(graph: Graph, barriers: Mapping[str, str]) -> list[losses.Term]:
            terms = losses.choose(
                graph, self.answers, self.train.labels, self.options.losses, self.options.temperature
            )
            stops = features.in_front_of(graph, barriers)
            if not within and not stops:
                return terms
            known = features.look(self.models.student, self.models.slices)
            blocks = features.spread(known.blocks) if within else []
            inner = targets.insides(self.models.teacher, self.train, [*stops, *blocks], self.options.jobs)
            for names, weight in ((stops, 1.0), ([n for n in blocks if n not in stops], within)):
                terms += features.terms(graph, known, inner, names, weight, len(self.train))
            return terms

        return self._prepared(self.train, choose, part)

    def shorter(self, training: Training, part: int, padded: Lengths) -> list[Training]:
        """The graph for each shorter length; none where padding can't be cut off."""
        values = dict.fromkeys(training.targets.values())
        inside = [name for name in values if name in training.matches]
        outputs = [name for name in values if name not in training.matches]
        teacher, student = self.models.teacher, self.models.student
        pair: list[Compared] = [(teacher, outputs, inside), (student, outputs, [])]
        if not lengths.hold(padded, pair, self.train):
            return []
        found = []
        for size in padded.sizes[:-1]:
            cut = padded.cut(self.train, size)
            try:
                found.append(self._prepared(cut, lambda graph, barriers: list(training.terms), part))
            except HealError:  # the graph computes with its length in a way that a copy can't follow
                return []
        return found if all(map(training.fits, found)) else []

    def pays(self, training: Training) -> bool:
        """Whether batch normalization is worth its time: it is asked for, or much is broken."""
        if training.normalized is None:
            return False
        if self.options.batch_norm == "on" or self.options.thin is not None:
            return True
        return targets.off(self.models.path, self.train, self.answers, self.options.jobs) > BROKEN

    def _prepared(self, train: Samples, choose: Choose, part: int) -> Training:
        feeds = {name: targets.rows(array, part) for name, array in train.inputs.items()}
        labels = None if train.labels is None else targets.rows(train.labels, part)
        sides = side_inputs(ports(self.models.student))
        pattern = re.compile(self.options.freeze) if self.options.freeze else None

        def is_frozen(name: str) -> bool:
            return name in sides or bool(pattern and pattern.search(name))

        student = settled(self.models.student, train, part)
        normal = self.options.batch_norm != "off"
        return prepare(student, feeds, choose, labels, freeze=is_frozen, batch_norm=normal)
