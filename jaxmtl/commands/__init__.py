"""The verbs of the `jaxmtl` command, one file each: `HELP`, `add_arguments(parser)` and `run(arguments, config)`."""
