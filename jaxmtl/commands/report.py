"""`jaxmtl report`: draws a run folder's curves and tables: report.html with PNGs, Markdown and CSV."""

import argparse
from typing import Any

HELP = "write report.html, figures and tables from a run folder's records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run folder, runs to compare it with, and where to write."""
    parser.add_argument("run_dir", help="run folder that was trained or evaluated into")
    parser.add_argument(
        "--compare", action="append", default=[], metavar="RUN_DIR", help="evaluated run to put beside, repeatable"
    )
    parser.add_argument("--out", help="folder to write into; the run folder by default")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Writes the report and says where.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.
    """
    from jaxmtl.reports.page import write_report

    print(f"report: {write_report(arguments.run_dir, arguments.out, compare=arguments.compare)}")
    return 0
