"""The models that the other tests lean on: they run, at two batch sizes, and don't degenerate."""

import numpy as np
import onnx
import pytest
from models import (
    BUILDERS,
    as_constant_nodes,
    random_feeds,
    run,
    save_samples,
    transformer_encoder,
    with_batch,
)


@pytest.mark.parametrize("name", BUILDERS)
def test_batch_is_dynamic_and_samples_are_independent(name: str) -> None:
    model = BUILDERS[name]()
    feeds = random_feeds(model, 5)
    logits = run(model, feeds)
    assert logits.shape == (5, 10)
    alone = run(model, {k: v[2:3] for k, v in feeds.items()})
    np.testing.assert_allclose(alone[0], logits[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_outputs_depend_on_the_input_and_are_of_order_one(name: str) -> None:
    logits = run(BUILDERS[name](), random_feeds(BUILDERS[name](), 64))
    assert 0.01 < logits.std(axis=0).mean() < 100, "a model that ignores its input hides every wrong cut"
    assert len(set(logits.argmax(axis=1))) > 1


@pytest.mark.parametrize("name", BUILDERS)
def test_seed_decides_the_weights(name: str) -> None:
    build = BUILDERS[name]
    assert build(seed=3).SerializeToString() == build(seed=3).SerializeToString()
    feeds = random_feeds(build(), 4)
    assert np.abs(run(build(seed=3), feeds) - run(build(seed=4), feeds)).max() > 1e-3


@pytest.mark.parametrize("name", BUILDERS)
def test_constant_nodes_change_nothing(name: str) -> None:
    model = BUILDERS[name]()
    disguised = as_constant_nodes(model)
    assert not disguised.graph.initializer
    feeds = random_feeds(model, 3)
    np.testing.assert_array_equal(run(disguised, feeds), run(model, feeds))


def test_the_exports_of_the_transformer_agree() -> None:
    model = transformer_encoder()
    other = transformer_encoder(shape_arithmetic=True, decomposed_norm=True)
    assert {"Shape", "ReduceMean"} <= {n.op_type for n in other.graph.node}
    feeds = random_feeds(model, 4)
    np.testing.assert_allclose(run(other, feeds), run(model, feeds), rtol=1e-4, atol=1e-5)


def test_attention_mask_counts() -> None:
    model = transformer_encoder()
    feeds = random_feeds(model, 4)
    whole = {**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])}
    assert np.abs(run(model, feeds) - run(model, whole)).max() > 1e-3


def test_fixed_batch_refuses_another(tmp_path) -> None:
    model = with_batch(BUILDERS["residual_cnn"](), 2)
    assert run(model, random_feeds(model, 2)).shape == (2, 10)
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run(model, random_feeds(model, 3))


def test_saved_labels_are_the_models_own(tmp_path) -> None:
    model = BUILDERS["depthwise_se_cnn"]()
    with np.load(save_samples(model, tmp_path / "d.npz", 32), allow_pickle=False) as data:
        assert data["input"].shape == (32, 3, 16, 16)
        assert (run(model, {"input": data["input"]}).argmax(axis=1) == data["labels"]).all()
    onnx.checker.check_model(model, full_check=True)
