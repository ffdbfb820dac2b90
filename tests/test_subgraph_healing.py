"""Healing goes on around bodies of If, Loop and Scan, and says which weights it leaves alone."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from cutting import feeds_of, trial
from healing_tools import Setting, noisy
from test_subgraph_cuts import MODELS, captured, inside_and_outside, nested, own_weights

from condensec.data import Samples
from condensec.fidelity import output_error
from condensec.healing import closed_form, environment
from condensec.healing.bodies import weights_in_bodies
from condensec.passes.prune import with_weights
from condensec.runner import Session


@pytest.fixture(scope="module")
def worker() -> Path:
    """The worker's environment, made for real once."""
    return environment.ensure()


def test_weights_in_bodies_are_named_with_a_reason() -> None:
    found = weights_in_bodies(own_weights())
    assert found == {
        "k[then_branch].v": (48, "in a body of If 'If2'"),
        "k[then_branch].u": (24, "in a body of If 'If2'"),
        "k[else_branch].v": (80, "in a body of If 'If2'"),
        "k[else_branch].u": (40, "in a body of If 'If2'"),
    }
    assert set(weights_in_bodies(captured())) == {"w2", "w3", "w4"}
    assert set(weights_in_bodies(nested())) == {"w2", "w3", "wh"}


@pytest.mark.parametrize("name", ["own weights", "carried", "nested"])
def test_closed_form_repairs_around_bodies(name: str) -> None:
    found = trial(MODELS[name][0]())
    feeds = feeds_of(found.original, found.analysis, batch=64)
    result = closed_form.repair(
        found.analysis.runnable, found.cut.model, Samples(feeds), found.cut.plan, threads=1
    )
    assert set(result.weights) == {"w5" if name == "own weights" else "wo"}
    reference = Session(ir.from_proto(found.original)).run(feeds)
    before = output_error(reference, Session(found.cut.model).run(feeds))
    after = output_error(reference, Session(with_weights(found.cut.model, result.weights)).run(feeds))
    assert after < 0.8 * before


@pytest.mark.parametrize("make", [inside_and_outside, nested], ids=lambda f: f.__name__)
def test_training_goes_on_around_bodies(tmp_path: Path, worker: Path, make: object) -> None:
    teacher = make()  # type: ignore[operator]
    setting = Setting(tmp_path, teacher, noisy(teacher), 64)
    result = setting.heal(epochs=12, lr=0.01)
    assert result.loss_curve[-1].validation_loss < 0.9 * result.loss_curve[0].validation_loss
    left = {name for name, reason in result.frozen if "in a body of" in reason}
    assert left == set(weights_in_bodies(teacher))
    assert 0 < result.trained_share < 1
