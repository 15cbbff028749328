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


MODELS = {name: model(name, *columns) for name, columns in work.TABLES.items()}


def sync_each_commit(engine):
    @event.listens_for(engine, "connect")
    def set_pragmas(connection, record):
        connection.execute("PRAGMA synchronous = full")


class Store(work.OrmStore):
    def __init__(self, session):
        self.session, self.models = session, MODELS
        self.transaction = session.begin

    def get(self, table, key):
        return self.session.get(table, key)

    def add(self, table, **row):
        self.session.add(table(**row))

    def put(self, table, keys, row=None, more=None, where=None, returning=()):
        statement = insert(table).values(**keys, **(row or {}))
        if more is None:
            statement = statement.on_conflict_do_nothing()
        else:
            statement = statement.on_conflict_do_update(
                index_elements=list(keys), set_=more, where=where
            )
        if returning:
            columns = [getattr(table, name) for name in returning]
            return self.session.execute(statement.returning(*columns)).one()
        return self.session.execute(statement).rowcount

    def days(self, page, since):
        hit = self.Hit
        rows = select(hit.day, hit.hits, hit.visitors)
        return self.session.execute(rows.where(hit.page == page, hit.day >= since))
