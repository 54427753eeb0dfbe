"""Takes out of notebooks what only makes noise in their history: time stamps of cells. Outputs stay.

    python notebooks/clean.py notebooks/*.ipynb

Exits with 1 if a notebook was changed, as pre-commit expects.
"""

import json
import sys
from pathlib import Path


def cleaned(text: str) -> str:
    """A notebook's text without the times at which its cells were executed."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    changed = [path for path in map(Path, sys.argv[1:]) if cleaned(path.read_text()) != path.read_text()]
    for path in changed:
        path.write_text(cleaned(path.read_text()))
        print(f"cleaned {path}")
    sys.exit(bool(changed))
