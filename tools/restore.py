"""Put a backup into the place of the SQLite database.

    make restore FROM=frontdesk-3.sqlite3 TO=sqlite:////var/lib/frontdesk/frontdesk.db

The service must have ended. SQLite itself copies the content into the file that is
there: its owner stays, and a log (-wal) that a killed service has left behind cannot be
taken for a part of the backup, which makes a database "malformed".
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file

from frontdesk.settings import sqlite_path

COUNTED = ("message", "subscriber", "page")


class RestoreError(Exception):
    """A reason not to restore."""


def restore(backup: Path, target: Path) -> dict[str, int]:
    """Copy a backup over a database and return how many rows it has.

    Raises RestoreError, and sqlite3.Error, before anything was changed.
    """
    if not backup.is_file():
        raise RestoreError(f"there is no {backup}")
    source = sqlite3.connect(f"{backup.absolute().as_uri()}?immutable=1", uri=True)
    with closing(source), closing(sqlite3.connect(target, timeout=1)) as database:
        if source.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise RestoreError(f"{backup} is damaged")
        count = "SELECT count(*) FROM "
        rows = {name: source.execute(count + name).fetchone()[0] for name in COUNTED}
        _close_log(database)
        source.backup(database)
        return rows


def _close_log(database: sqlite3.Connection) -> None:
    """Leave the mode with a log, which only the last one who has a file open can do."""
    try:
        database.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        raise RestoreError("the service still runs: stop it first") from error


def main(arguments: list[str]) -> int:
    """Restore, and print the counts or what is wrong."""
    target = sqlite_path(arguments[1]) if len(arguments) == 2 else None
    if target is None:
        print("usage: python tools/restore.py BACKUP sqlite:///FILE", file=sys.stderr)
        return 2
    try:
        rows = restore(Path(arguments[0]), target)
    except (RestoreError, sqlite3.Error) as error:
        print(f"Nothing was restored: {error}", file=sys.stderr)
        return 1
    for name, count in rows.items():
        print(f"{name:12}{count:>10,}")
    print(f"These are in {target} now, which belongs to {target.owner()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
