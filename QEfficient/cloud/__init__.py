"""The command line: one module per command, found by listing this folder (see `main`).

A command is a module with `HELP` (a sentence), `EXAMPLES` (command lines), `add_arguments(parser)` and
`run(arguments) -> exit code`. It imports what it needs inside `run`, so that help and mistakes are answered at once.
"""
