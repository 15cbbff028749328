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

import models
from frontdesk.settings import sqlite_path

TABLES: tuple[Any, ...] = (
    models.Setting,
    models.Tally,
    models.Receipt,
    models.Message,
    models.Subscriber,
    models.Delivery,
    models.Page,
    models.Hit,
    models.Visitor,
)
ROWS = 500  # in memory at a time


class MoveError(Exception):
    """A reason not to move."""


TROUBLE: tuple[type[Exception], ...] = (MoveError, OSError, *models.StorageError)


def move(source_url: str, target_url: str) -> dict[str, int]:
    """Copy all rows and return how many there are of each table.

    Raises MoveError when the target is not empty, or has other counts afterwards.
    """
    path = sqlite_path(source_url)
    if path is not None and not path.exists():
        raise MoveError(f"there is no {path}")
    models.migrate(source_url, path)  # the same schema on both sides
    models.migrate(target_url, sqlite_path(target_url))
    source, target = (
        models.connect(url, sqlite_path(url), threads=1)
        for url in (source_url, target_url)
    )
    with closing(source), closing(target), source.atomic(), target.atomic():
        lived_in = counts(target)
        if any(lived_in[name] for name in ("setting", "message", "subscriber", "hit")):
            raise MoveError("the target is not empty")
        for table in TABLES:
            copy(table, source, target)
        before, after = counts(source), counts(target)
        if before != after:
            raise MoveError(f"counts differ: {before} before, {after} after")
        return after


def copy(table: Any, source: Any, target: Any) -> None:
    """Copy a table's rows, and the number that its next one gets."""
    table.delete().bind(target).execute()  # what the migrations put there
    rows = table.select().tuples().bind(source).iterator()
    fields = table._meta.sorted_fields
    while chunk := list(islice(rows, ROWS)):
        table.insert_many(chunk, fields).bind(target).execute()
    if table is models.Delivery and not models.is_sqlite(target):
        target.execute_sql(
            "SELECT setval(pg_get_serial_sequence('delivery', 'id'), "
            "(SELECT max(id) FROM delivery)) FROM delivery LIMIT 1"
        )


def counts(database: Any) -> dict[str, int]:
    """Return how many rows each table has."""
    result = {}
    for table in TABLES:
        with table.bind_ctx(database):
            result[table._meta.table_name] = table.select().count()
    return result


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
