"""Studies are scripts: their folder is on the path, as when they are run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "demos" / "studies"))
