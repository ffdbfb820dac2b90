"""What it's worth that channels change places before N:M zeros are set: the same run with and without.

    python benchmarks/permutation.py MODEL.onnx --data TRAIN.npz --val VAL.npz [--patterns 2:4 4:8 1:4]

No training, so that nothing but the zeros is seen. In the table: the metric of the original, and with the
pattern, on condensec's own test split.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import common


@contextmanager
def order(*, sorts: bool) -> Iterator[None]:
    """With the channels' order as condensec makes it, or as it is in the file."""
    if sorts:
        yield
        return
    with mock.patch("condensec.stages.reorder.reordered", lambda job, cut, *rest: (cut, {}, ())):
        yield


def main() -> int:
    import condensec

    started = time.time()
    parser = common.arguments(__doc__ or "", name="permutation")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--data", required=True, metavar="NPZ")
    parser.add_argument("--val", metavar="NPZ")
    parser.add_argument("--patterns", nargs="+", default=["2:4", "4:8", "1:4"])
    parser.add_argument("--heal", default="off", help="off (default) or closed-form")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for pattern in options.patterns:
        for sorts in (False, True):
            with order(sorts=sorts):
                report = condensec.compress(
                    str(options.model), data=options.data, val=options.val, patterns=pattern,
                    heal=options.heal, max_drop="inf", seed=options.seed,
                    output=str(options.output / f"{options.model.stem}.{pattern.replace(':', '-')}.{sorts}"),
                ).to_json()  # fmt: skip
            found = report["patterns"][0]
            rows.append(
                {
                    "pattern": pattern,
                    "channels sorted": "yes" if sorts else "no",
                    "zeros": found["share_reached"],
                    "violations": found["violations"],
                    "before": report["before"]["metric"]["value"],
                    "after": report["after"]["metric"]["value"],
                }
            )
            print(common.table(rows), file=sys.stderr, flush=True)
    print(common.table(rows))
    common.write_json(options.output / f"permutation_{options.model.stem}.json", {"rows": rows}, started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
