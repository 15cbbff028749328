"""The order of a form's fields, and what the owner called spam or not."""

from peewee import SqliteDatabase


def up(migrator, db):
    db.execute_sql("ALTER TABLE message ADD COLUMN layout TEXT NOT NULL DEFAULT '[]'")
    without_rowid = " WITHOUT ROWID" if isinstance(db, SqliteDatabase) else ""
    db.execute_sql(
        "CREATE TABLE lesson (hash TEXT NOT NULL, message_id TEXT NOT NULL, "
        f"is_spam BOOLEAN NOT NULL, PRIMARY KEY (hash, message_id)){without_rowid}"
    )
    db.execute_sql("CREATE INDEX lesson_message ON lesson (message_id)")
