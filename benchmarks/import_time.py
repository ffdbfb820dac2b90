"""How long `condensec --help` and `import condensec` take: fresh processes, the median of many.

    python benchmarks/import_time.py [--runs 15] [--limit 0.3]

With `--limit`, exit code 1 if `condensec --help` takes longer than that many seconds. `python -c pass` is
the floor that no program gets below.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import common


def seconds(command: list[str], runs: int) -> list[float]:
    """Wall times of the command, one warm-up run left out (it fills the file cache and writes .pyc)."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return sorted(times[1:])


def main() -> int:
    started = time.time()
    parser = common.arguments(__doc__ or "", name="import_time")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--limit", type=float, help="seconds that `condensec --help` may take")
    options = parser.parse_args()
    commands = {
        "condensec --help": [str(Path(sys.executable).with_name("condensec")), "--help"],
        "import condensec": [sys.executable, "-c", "import condensec"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    rows = []
    for name, command in commands.items():
        times = seconds(command, options.runs)
        rows.append(
            {"command": name, "median s": statistics.median(times), "least s": times[0], "most s": times[-1]}
        )
    print(common.table(rows))
    common.write_json(options.output / "import_time.json", {"runs": options.runs, "rows": rows}, started)
    median = rows[0]["median s"]
    assert isinstance(median, float)
    if options.limit is not None and median > options.limit:
        print(f"condensec --help takes {median:.3f} s, more than {options.limit} s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
