"""Writes src/imprint/demo/demonstrations.jsonl: what the embedded model is taught in the demo.

python tools/write_demonstrations.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from imprint.demo.exercises import demonstrations

TARGET = Path(__file__).parent.parent / "src" / "imprint" / "demo" / "demonstrations.jsonl"


def main(target: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in demonstrations()]
    target.write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
