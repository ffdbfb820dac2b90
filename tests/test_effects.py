"""Zeros shared by the sensitivity map: a layer that matters keeps more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import tiny
from line_tools import compress

from condensec.data import Samples
from condensec.fidelity import output_error
from condensec.passes import patterns
from condensec.passes.contraction import arrays, places
from condensec.passes.effects import effects, energies
from condensec.passes.patterns import Layer
from condensec.passes.patterns.unstructured import by_shape
from condensec.passes.second_moments import Moments
from condensec.runner import Session
from condensec.sparsity import Sparsity

LOUD, QUIET = 10.0, 0.1  # what two layers with equal weights are multiplied with


def two_ways() -> onnx.ModelProto:
    """``y = 10 (x A) + 0.1 (x B)`` with weights of the same sizes."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((16, 16)).astype(np.float32)
    return tiny(
        """
        a = MatMul(x, wa)
        b = MatMul(x, wb)
        la = Mul(a, loud)
        lb = Mul(b, quiet)
        y = Add(la, lb)
        """,
        x=["N", 16],
        weights={
            "wa": weight, "wb": rng.permuted(weight.ravel()).reshape(16, 16),
            "loud": np.float32(LOUD), "quiet": np.float32(QUIET),
        },
    )  # fmt: skip


def samples(count: int = 256) -> Samples:
    return Samples({"x": np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)})


def measured(share: float = 0.5) -> tuple[ir.Model, list[Layer]]:
    model = ir.from_proto(two_ways())
    found, _ = places(model)
    weights = arrays(model, found)
    layers = [Layer(place, weights[place.weight]) for place in found]
    known = effects(model, layers, share, samples())
    return model, [Layer(la.place, la.weight, effect=known[la.place.weight]) for la in layers]


def saved(folder: Path) -> tuple[Path, Path]:
    """The model and its samples as files."""
    path, data = folder / "m.onnx", folder / "d.npz"
    onnx.save(two_ways(), path)
    np.savez(data, x=samples().inputs["x"])
    return path, data


def test_the_effect_of_a_layer_is_that_of_its_energy_on_the_outputs() -> None:
    """With white inputs, what goes of a weight adds its square times the factor's to the error."""
    for share in (0.3, 0.7):
        _, layers = measured(share)
        effect = {layer.place.weight: layer.effect for layer in layers}
        assert effect["wa"] / effect["wb"] == pytest.approx((LOUD / QUIET) ** 2, rel=0.3)
        assert all(np.array_equal(energies(la), np.square(la.matrix, dtype=np.float64)) for la in layers)


@pytest.mark.parametrize("name", ["unstructured", "blocks"])
def test_the_layer_that_matters_keeps_more(name: str) -> None:
    model, layers = measured()
    width = 4 if name == "blocks" else 0
    reference = Session(model).run_samples(samples())
    left, error = {}, {}
    for method in ("magnitude", "sensitivity"):
        made = patterns.get(name)(layers, Sparsity(name, 0.5, method=method, width=width))
        left[method] = {weight: zeros.mask.mean() for weight, zeros in made.items()}
        changed = two_ways()
        for tensor in changed.graph.initializer:
            if tensor.name in made:
                tensor.raw_data = np.ascontiguousarray(made[tensor.name].weight).tobytes()
        error[method] = output_error(reference, Session(changed).run_samples(samples()))
        assert np.mean(list(left[method].values())) == pytest.approx(0.5, abs=0.01)
    assert left["sensitivity"]["wa"] > 0.95
    assert left["sensitivity"]["wb"] < 0.05
    assert left["magnitude"]["wa"] == pytest.approx(left["magnitude"]["wb"], abs=0.1)  # the control
    assert error["sensitivity"] < 0.05 * error["magnitude"]


def test_moments_of_a_model_whose_weights_all_read_its_inputs() -> None:
    model = ir.from_proto(two_ways())
    found, _ = places(model)
    rows = samples()
    moments = Moments(model, found, rows)
    for place in found:
        assert moments.squares(place) == pytest.approx(
            np.square(rows.inputs["x"]).mean(axis=0)[None], rel=1e-5
        )


def test_the_whole_line_takes_the_method(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    kept = {}
    for method in ("sensitivity", "layerwise"):
        out = tmp_path / method
        wanted = f"unstructured=0.5:{method}"
        (found,) = compress(path, out, data=data, patterns=wanted).patterns
        assert found.name == wanted
        assert found.share_reached == pytest.approx(0.5, abs=0.01)
        graph = onnx.load(out / "model.onnx").graph
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        kept[method] = np.count_nonzero(weights["wa"]) / 256
    assert kept["sensitivity"] > 0.95
    assert kept["layerwise"] == pytest.approx(0.5, abs=0.01)


def test_narrow_layers_keep_more_by_their_shapes() -> None:
    """The Erdos-Renyi kernel: what stays grows with the sum of a weight's dims, and is all of it at most."""
    shapes = [(16, 3, 3, 3), (16, 16, 3, 3), (64, 64, 3, 3), (10, 64)]
    layers = [
        cast(Layer, SimpleNamespace(place=SimpleNamespace(weight=str(i)), weight=np.zeros(shape)))
        for i, shape in enumerate(shapes)
    ]
    found = by_shape(layers, 0.9)
    sizes = np.array([np.prod(shape) for shape in shapes])
    gone = np.array([found[str(i)] for i in range(len(shapes))])
    assert float(gone @ sizes) == pytest.approx(0.9 * sizes.sum())
    stay = (1 - gone) * sizes
    assert stay[2] / stay[1] == pytest.approx((64 + 64 + 6) / (16 + 16 + 6))
    assert gone[3] == 0.0
    assert gone[0] < 0.01
    assert list(by_shape(layers, 0.1).values()) == pytest.approx(
        [0.0, 0.0, 0.1 * sizes.sum() / sizes[2], 0.0]
    )


def test_ways_are_told_apart_with_fewer_zeros_where_nothing_is_left_of_the_outputs(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    said = {}
    for share in ("0.5", "0.97"):
        report = compress(path, tmp_path / share, data=data, patterns=f"unstructured={share}")
        (found,) = report.patterns
        assert found.share_reached == pytest.approx(float(share), abs=0.01)
        (said[share],) = [n for n in found.notes if "share the zeros by" in n]
    assert "healing:" in said["0.5"]
    assert "healing with 0." in said["0.97"]


def test_without_a_method_the_way_that_changes_the_outputs_less_is_taken(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    graphs = {}
    for wanted in ("unstructured=0.5", "unstructured=0.5:sensitivity", "unstructured=0.5:obs"):
        out = tmp_path / wanted.replace(":", "-")
        report = compress(path, out, data=data, patterns=wanted)
        graphs[wanted] = onnx.load(out / "model.onnx").graph.SerializeToString()
        said = [n for found in report.patterns for n in found.notes if "share the zeros by" in n]
        assert len(said) == (wanted == "unstructured=0.5")
    assert graphs["unstructured=0.5"] == graphs["unstructured=0.5:sensitivity"]
    assert graphs["unstructured=0.5"] != graphs["unstructured=0.5:obs"]
