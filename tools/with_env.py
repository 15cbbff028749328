"""Run a command with the variables of a file, where the environment has them not.

    python tools/with_env.py .env gunicorn --config gunicorn.conf.py

Lines are NAME=value, with or without quotes. A file that is not there counts as empty.
"""

from __future__ import annotations

import os
import sys

from dotenv import dotenv_values


def environment(path: str) -> dict[str, str]:
    """Return the file's variables, and over them the environment's own."""
    told = dotenv_values(path, interpolate=False)
    return {name: text for name, text in told.items() if text} | dict(os.environ)


if __name__ == "__main__":
    path, *command = sys.argv[1:]
    os.execvpe(command[0], command, environment(path))  # noqa: S606 # as asked
