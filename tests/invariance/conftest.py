"""Makes tests/tiny.py and matrix.py importable; it also keeps torch to one thread."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
