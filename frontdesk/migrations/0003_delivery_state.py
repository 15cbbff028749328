"""What became of a message after Mailjet took it, by Mailjet's events."""

from peewee import SqliteDatabase


def up(migrator, db):
    moment = "REAL" if isinstance(db, SqliteDatabase) else "DOUBLE PRECISION"
    db.execute_sql(f"ALTER TABLE message ADD COLUMN delivered_at {moment}")
    db.execute_sql(f"ALTER TABLE message ADD COLUMN undelivered_at {moment}")
    db.execute_sql("ALTER TABLE message ADD COLUMN delivery_reason TEXT")
    # Few are undelivered, and /health counts them.
    db.execute_sql(
        "CREATE INDEX message_undelivered ON message (undelivered_at) "
        "WHERE undelivered_at IS NOT NULL"
    )
