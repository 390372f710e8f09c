"""Execute notebooks where they stand, writing nothing: `python scripts/run_notebook.py NOTEBOOK...`.

Exits non-zero at the first cell that raises, and prints that cell and its error. Needs the extra `notebooks`.
"""

from __future__ import annotations

import sys
import time

import nbclient
import nbformat


def run(path: str) -> None:
    """Execute one notebook in a fresh kernel, in the folder it is run from."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{path}: {cells} code cells ran in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(name)
