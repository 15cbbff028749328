"""Move house: copy everything from one database into another, empty one.

    make move FROM=sqlite:///frontdesk.db TO=postgres://user:password@host/name

Stop the service first, start it with the new DATABASE_URL afterwards. The source is
not changed. All is copied in one transaction, or nothing; links mailed before work on.
"""

from __future__ import annotations

import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file

from frontdesk.database import Database, StorageError, open_database
from frontdesk.deliveries import Delivery
from models import TABLES

ROWS = 500  # in memory at a time


class MoveError(Exception):
    """A reason not to move."""


TROUBLE: tuple[type[Exception], ...] = (MoveError, OSError, *StorageError)


def move(source_url: str, target_url: str) -> dict[str, int]:
    """Copy all rows and return how many there are of each table.

    Raises MoveError when the target is not empty, or has other counts afterwards.
    """
    source, target = open_database(source_url), open_database(target_url)
    if source.path is not None and not source.path.exists():
        raise MoveError(f"there is no {source.path}")
    for database in (source, target):
        database.migrate()  # the same schema on both sides
    target.enter()  # peewee asks it how rows are inserted
    engines = source.engine, target.engine
    with closing(source), closing(target), engines[0].atomic(), engines[1].atomic():
        lived_in = counts(target)
        if any(lived_in[name] for name in ("setting", "message", "subscriber", "hit")):
            raise MoveError("the target is not empty")
        for table in TABLES:
            copy(table, source, target)
        before, after = counts(source), counts(target)
        if before != after:
            raise MoveError(f"counts differ: {before} before, {after} after")
        return after


def copy(table: Any, source: Database, target: Database) -> None:
    """Copy a table's rows, and the number that its next one gets."""
    table.delete().bind(target.engine).execute()  # what the migrations put there
    rows = table.select().tuples().bind(source.engine).iterator()
    fields = table._meta.sorted_fields
    while chunk := list(islice(rows, ROWS)):
        table.insert_many(chunk, fields).bind(target.engine).execute()
    if table is Delivery and not target.is_sqlite:
        target.execute(
            "SELECT setval(pg_get_serial_sequence('delivery', 'id'), "
            "(SELECT max(id) FROM delivery)) FROM delivery LIMIT 1"
        )


def counts(database: Database) -> dict[str, int]:
    """Return how many rows each table has."""
    names = [table._meta.table_name for table in TABLES]
    count = "SELECT count(*) FROM "
    return {name: database.execute(count + name).fetchone()[0] for name in names}


def main(arguments: list[str]) -> int:
    """Move, and print the counts or what is wrong."""
    if len(arguments) != 2 or "://" not in arguments[0] or "://" not in arguments[1]:
        print("usage: python tools/move.py SOURCE_URL TARGET_URL", file=sys.stderr)
        return 2
    try:
        moved = move(*arguments)
    except TROUBLE as error:
        reason = str(error).partition("\n")[0]  # the rest may hold values
        print(f"Nothing was moved: {reason}", file=sys.stderr)
        return 1
    for name, count in moved.items():
        print(f"{name:12}{count:>10,}")
    print("The counts are the same on both sides. Set DATABASE_URL to the new one.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
