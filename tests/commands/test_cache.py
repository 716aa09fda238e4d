import subprocess
import sys

import pytest

LIMITED = """
import resource, sys
from jaxmtl.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_a_full_disk_ends_the_command_in_one_line(store, on_cpu, tmp_path):
    # A limit on the size of files stands in for a full disk; the pipeline still has tasks to tokenise when it is hit.
    words = ["cache", "--gin_file=tasks/toy.gin", f"--gin.STORE={tmp_path / 'full'}", "--gin.NUM_EXAMPLES=100"]
    words += [f"--gin.VOCABULARY={store.parent / 'spiece.model'}"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, env=on_cpu, timeout=300
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("caching ")]
    assert len(lines) == 1 and lines[0].startswith("error: token store") and "File too large" in lines[0], done.stderr
    assert not (tmp_path / "full").exists()
