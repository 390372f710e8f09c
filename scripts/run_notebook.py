"""Execute notebooks where they stand: `python scripts/run_notebook.py [--keep] NOTEBOOK...`.

With `--keep`, what the cells print and draw is stored in the notebook, for those who read it on a page; otherwise nothing is
written. Exits non-zero at the first cell that raises, and prints that cell and its error. Needs the extra `notebooks`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbclient
import nbformat


def run(path: str, keep: bool) -> None:
    """Execute one notebook in a fresh kernel, in the folder it is run from."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    if keep:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when each cell ran: another time with every run
        Path(path).write_text(nbformat.writes(notebook).replace(f"{Path.cwd()}/", "") + "\n", encoding="utf-8")
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{path}: {cells} code cells ran in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK")
    parser.add_argument("--keep", action="store_true", help="store what the cells print and draw")
    given = parser.parse_args()
    for name in given.notebooks:
        run(name, given.keep)
