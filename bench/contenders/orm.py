"""SQLAlchemy's models and the work through its session, for Flask and FastAPI alike."""

import work
from sqlalchemy import Float, Integer, String, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, mapped_column


class Base(DeclarativeBase):
    pass


KINDS = {"": String, "a": Integer, "f": Float, "i": Integer}


def model(name, keys, others):
    """Make the class that one would write out, a line for each column."""
    made = {"__tablename__": name.lower()}
    for column in f"{keys} {others}".split():
        field, _, kind = column.partition(":")
        made[field] = mapped_column(KINDS[kind], primary_key=column in keys.split())
    return type(name, (Base,), made)


Message, Receipt, Delivery, Subscriber, Tally, Page, Hit, Visitor = (
    model(name, *columns) for name, columns in work.TABLES.items()
)


def sync_each_commit(engine):
    @event.listens_for(engine, "connect")
    def set_pragmas(connection, record):
        connection.execute("PRAGMA synchronous = full")


class Store:
    def __init__(self, session):
        self.session = session

    def keep(self, row, key):
        db, found, now = self.session, row["id"], row["received_at"]
        until = now + work.DUPLICATE_SECONDS
        claim = insert(Receipt).values(key=key, message_id=found, expires_at=until)
        new = {k: claim.excluded[k] for k in ("message_id", "expires_at")}
        claim = claim.on_conflict_do_update(
            index_elements=["key"], set_=new, where=Receipt.expires_at <= now
        )
        if db.execute(claim).rowcount:
            db.add(Message(**row))
            db.add(Delivery(kind="contact", ref=found, created_at=now, due_at=now))
        else:
            found = db.get(Receipt, key).message_id
        db.commit()
        return found

    def ask(self, row, day):
        db, now = self.session, row["asked_at"]
        add = insert(Subscriber).values(**row).on_conflict_do_nothing()
        tally = insert(Tally).values(name="mails", period=day, n=1)
        tally = tally.on_conflict_do_update(
            index_elements=["name", "period"],
            set_={"n": Tally.n + 1},
            where=Tally.n < work.MAILS_PER_DAY,
        )
        if db.execute(add).rowcount and db.execute(tally).rowcount:
            ref = row["id"]
            db.add(Delivery(kind="confirm", ref=ref, created_at=now, due_at=now))
        db.commit()

    def count(self, page, day, visitor):
        db = self.session
        seen = insert(Visitor).values(day=day, hash=visitor).on_conflict_do_nothing()
        new = db.execute(seen).rowcount
        sums = insert(Page).values(page=page, hits=1, visitors=new)
        more = {"hits": Page.hits + 1, "visitors": Page.visitors + new}
        sums = sums.on_conflict_do_update(index_elements=["page"], set_=more)
        found = db.execute(sums.returning(Page.hits, Page.visitors)).one()
        hit = insert(Hit).values(page=page, day=day, hits=1, visitors=new)
        more = {"hits": Hit.hits + 1, "visitors": Hit.visitors + new}
        db.execute(hit.on_conflict_do_update(index_elements=["page", "day"], set_=more))
        db.commit()
        return found

    def totals(self, page):
        row = self.session.get(Page, page)
        return (row.hits, row.visitors) if row else (0, 0)

    def days(self, page, since):
        rows = select(Hit.day, Hit.hits, Hit.visitors)
        return self.session.execute(rows.where(Hit.page == page, Hit.day >= since))
