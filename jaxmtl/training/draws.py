"""What was drawn of each task so far, beside what its share asked for: a small file that tells how sampling goes."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxmtl.files import write_whole

DRAWS_FILE = "draws.json"


def write_draws(run_dir: pathlib.Path, names: Sequence[str], drawn: np.ndarray, asked: np.ndarray) -> None:
    """Writes the counts of a run, in place of earlier ones.

    Args:
      run_dir: the run folder.
      names: N task names.
      drawn: float64 [N], rows drawn of each task; a window of the stream counts whole.
      asked: float64 [N], how many of them its share asked for.
    """
    rows = zip(names, drawn.tolist(), asked.tolist(), strict=True)
    tasks = {name: {"drawn": int(count), "asked": round(share, 3)} for name, count, share in rows}
    write_whole(run_dir / DRAWS_FILE, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
