"""Joins the processes of a run on several hosts into one."""

import argparse
import re
import sys

from jaxmtl.types import InputError

TIMEOUT = 300
"""Seconds that a process waits for the others of its run."""


def join(arguments: argparse.Namespace) -> None:
    """Starts `jax.distributed` if hosts were asked for, and says which process this is.

    Args:
      arguments: with `coordinator`, `num_processes` and `process_id`.

    Raises:
      InputError: if the other processes do not answer in time.
    """
    count, index = arguments.num_processes, arguments.process_id
    if arguments.coordinator is None:
        if count is not None or index is not None:
            raise InputError("--num_processes and --process_id tell nothing without --coordinator HOST:PORT")
        return
    address = dict(num_processes=count, process_id=index)
    if arguments.coordinator != "auto":
        if count is None or index is None:
            raise InputError(f"--coordinator {arguments.coordinator} needs --num_processes and --process_id")
        if not re.fullmatch(r".+:\d+", arguments.coordinator):
            raise InputError(f"--coordinator is {arguments.coordinator!r}, expected HOST:PORT or auto")
        if not 0 <= index < count:
            raise InputError(f"--process_id is {index}, expected 0 to {count - 1}: there are --num_processes {count}")
        address |= dict(coordinator_address=arguments.coordinator)
    import jax

    print(f"waiting for the other processes (coordinator {arguments.coordinator}) ...", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(**address, initialization_timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the hosts did not find each other ({reason}); start the same command on every host within {TIMEOUT}"
            " s, each with its own --process_id, and check that the coordinator's port is open"
        ) from error
    print(f"process {jax.process_index()} of {jax.process_count()}", file=sys.stderr, flush=True)
