"""The tables as they were first; models.py may have moved on."""

from peewee import (
    BigAutoField,
    BigIntegerField,
    BooleanField,
    CompositeKey,
    DoubleField,
    IntegerField,
    Model,
    SqliteDatabase,
    TextField,
)


def up(migrator, db):
    sqlite = isinstance(db, SqliteDatabase)

    class Table(Model):
        class Meta:
            database = db

    class Setting(Table):
        name = TextField(primary_key=True)
        value = TextField()

    class Tally(Table):
        name = TextField()
        period = TextField()
        n = IntegerField()

        class Meta:
            primary_key = CompositeKey("name", "period")

    class Receipt(Table):
        key = TextField(primary_key=True)
        message_id = TextField()
        expires_at = DoubleField(index=True)

    class Message(Table):
        id = TextField(primary_key=True)
        received_at = DoubleField()
        name = TextField()
        email = TextField()
        subject = TextField()
        message = TextField()
        fields = TextField()
        page = TextField()
        client = TextField()
        spam_score = IntegerField()
        spam_reasons = TextField()
        echo = TextField()
        doubtful = BooleanField()
        held_at = DoubleField(null=True)
        digested_at = DoubleField(null=True)
        released_at = DoubleField(null=True)
        mailed_at = DoubleField(null=True)

    class Subscriber(Table):
        id = TextField(primary_key=True)
        mailbox = TextField(unique=True)
        cycle = TextField()
        email = TextField(null=True)
        name = TextField(null=True)
        page = TextField()
        client = TextField()
        wording = TextField()
        asked_at = DoubleField()
        mailed = TextField()
        confirmed_at = DoubleField(null=True)
        left_at = DoubleField(null=True)
        gone_at = DoubleField(null=True)
        refused_at = DoubleField(null=True)

    class Delivery(Table):
        id = BigAutoField()
        kind = TextField()
        ref = TextField()
        created_at = DoubleField()
        due_at = DoubleField(null=True)
        attempts = IntegerField(default=0)
        lease = TextField(null=True)
        error = TextField(null=True)

    class Page(Table):
        page = TextField(primary_key=True)
        hits = BigIntegerField()
        visitors = BigIntegerField()

        class Meta:
            without_rowid = sqlite

    class Hit(Table):
        page = TextField()
        day = TextField()
        hits = BigIntegerField()
        visitors = BigIntegerField()

        class Meta:
            primary_key = CompositeKey("page", "day")
            without_rowid = sqlite

    class Visitor(Table):
        day = TextField()
        hash = TextField()

        class Meta:
            primary_key = CompositeKey("day", "hash")
            without_rowid = sqlite

    class Bucket(Table):
        key = TextField(primary_key=True)
        tat = BigIntegerField()

        class Meta:
            without_rowid = sqlite

    tables = [
        Setting,
        Tally,
        Receipt,
        Message,
        Subscriber,
        Delivery,
        Page,
        Hit,
        Visitor,
    ]
    db.create_tables(tables if sqlite else [*tables, Bucket])
    # With both columns /health need not touch the rows.
    db.execute_sql("CREATE INDEX delivery_due ON delivery (due_at, created_at)")
    # Few messages are held and few texts long enough to compare: partial indexes.
    db.execute_sql(
        "CREATE INDEX message_held ON message (held_at) WHERE held_at IS NOT NULL"
    )
    db.execute_sql(
        "CREATE INDEX message_echo ON message (echo, received_at) WHERE echo <> ''"
    )
    db.execute_sql("INSERT INTO page (page, hits, visitors) VALUES ('/(other)', 0, 0)")
