"""Entry point. Keeps to syntax of Python 3.8, so that an older Python gets a sentence, not a SyntaxError."""

import sys


def run():
    # type: () -> int
    """Check the interpreter, then hand over to the command line; returns the exit code."""
    from abathur_db import requirements

    if not requirements.python()["ok"]:
        return requirements.refuse()
    from abathur_db import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
