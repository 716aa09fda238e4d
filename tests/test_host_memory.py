import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
from jaxmtl.host_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffer = bytearray(64 << 20)  # larger than a thread's own arena
    del buffer
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

found = []
for _ in range(2):
    thread = threading.Thread(target=faults)
    thread.start()
    thread.join()
print(found[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told to keep memory")
def test_a_buffer_that_was_freed_is_not_faulted_in_again():
    pages = {
        kind: int(
            subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, check=True, text=True).stdout
        )
        for kind in ("given back", "kept")
    }
    # 64 MB are 16,384 pages; the system may use larger ones.
    assert pages["kept"] < 100 and pages["kept"] < pages["given back"]
