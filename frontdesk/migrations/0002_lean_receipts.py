"""A receipt is one row in one place: each index is one more page for each message."""

from peewee import SqliteDatabase


def up(migrator, db):
    if not isinstance(db, SqliteDatabase):
        db.execute_sql("DROP INDEX receipt_expires_at")
        return
    db.execute_sql("ALTER TABLE receipt RENAME TO old_receipt")
    db.execute_sql(
        "CREATE TABLE receipt (key TEXT NOT NULL PRIMARY KEY, "
        "message_id TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID"
    )
    db.execute_sql(
        "INSERT INTO receipt SELECT key, message_id, expires_at FROM old_receipt"
    )
    db.execute_sql("DROP TABLE old_receipt")
