"""What was put off and still waits is found without a look at all that waits.

New deliveries are not in this index: it costs a message nothing.
"""


def up(migrator, db):
    db.execute_sql(
        "CREATE INDEX delivery_put_off ON delivery (created_at) "
        "WHERE due_at > created_at"
    )
