"""Entry point. Keeps to syntax of Python 3.8, so that an older Python gets a sentence, not a SyntaxError."""

import sys


def _run():
    # type: () -> int
    """Check the interpreter, then hand over to the command line; returns the exit code."""
    from abathur_db import requirements

    if not requirements.python()["ok"]:
        return requirements.refuse()
    from abathur_db import cli

    return cli.main(sys.argv[1:])


def run():
    # type: () -> int
    """Run; Ctrl-C before the command has begun is a sentence and no traceback as well (130: 128 + SIGINT)."""
    try:
        return _run()
    except KeyboardInterrupt:
        sys.stderr.write("abathur-db: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(run())
