"""Falcon and Peewee as their documentation shows them.

A middleware connects and closes for each request, models and atomic() do the rest.
The rate limit is the floor's: neither brings one.
"""

import falcon
import peewee
import work

pragmas = {"journal_mode": "wal", "synchronous": "full"}
db = peewee.SqliteDatabase(
    work.DATABASE, pragmas=pragmas, timeout=10, lock_type="IMMEDIATE"
)
limits = work.Limits()


class Table(peewee.Model):
    class Meta:
        database = db


KINDS = {
    **{"": peewee.TextField, "a": peewee.AutoField},
    **{"f": peewee.FloatField, "i": peewee.IntegerField},
}


def model(name, keys, others):
    """Make the class that one would write out, a line for each column."""
    fields = {}
    for column in f"{keys} {others}".split():
        field, _, kind = column.partition(":")
        fields[field] = KINDS[kind](**{"primary_key": True} if column == keys else {})
    if " " in keys:
        key = peewee.CompositeKey(*keys.split())
        fields["Meta"] = type("Meta", (), {"primary_key": key})
    return type(name, (Table,), fields)


class Store(work.OrmStore):
    models = {name: model(name, *columns) for name, columns in work.TABLES.items()}
    transaction = staticmethod(db.atomic)

    def get(self, table, key):
        return table.get_or_none(table._meta.primary_key == key)

    def add(self, table, **row):
        table.create(**row)

    def put(self, table, keys, row=None, more=None, where=None, returning=()):
        insert = table.insert(**keys, **(row or {}))
        if more is None:
            insert = insert.on_conflict_ignore()
        else:
            target = [getattr(table, key) for key in keys]
            update = {getattr(table, name): value for name, value in more.items()}
            insert = insert.on_conflict(
                conflict_target=target, update=update, where=where
            )
        if returning:
            columns = [getattr(table, name) for name in returning]
            return insert.returning(*columns).tuples().execute()[0]
        return insert.as_rowcount().execute()

    def days(self, page, since):
        hit = self.Hit
        rows = hit.select(hit.day, hit.hits, hit.visitors)
        return rows.where(hit.page == page, hit.day >= since).tuples()


store = Store()


class Middleware:
    """Peewee's connections, the rate limit, and what falcon.CORSMiddleware omits."""

    def process_request(self, req, resp):
        db.connect()

    def process_resource(self, req, resp, resource, params):
        limited = req.method == "POST" or req.path == "/hits.svg"
        if limited and not limits.allow(req.path, req.remote_addr):
            raise falcon.HTTPTooManyRequests

    def process_response(self, req, resp, resource, ok):
        resp.append_header("Vary", "Origin")  # caches must tell origins apart
        resp.set_header("Cache-Control", "no-store")
        if not db.is_closed():
            db.close()


def answer(resp, outcome):
    status, value = outcome
    resp.status = falcon.code_to_http_status(status)
    if isinstance(value, str):
        resp.content_type, resp.text = "image/svg+xml", value
    else:
        resp.media = value


class Form:
    def on_post(self, req, resp):
        respond, header = work.POSTS[req.path]
        told = req.get_header(header, default="")
        answer(resp, respond(store, req.media, req.remote_addr, told))


class Hits(Form):
    def on_get(self, req, resp):
        answer(resp, work.read(store, req.get_param("page")))


class Badge:
    def on_get(self, req, resp):
        answer(resp, work.badge(store, req.get_param("page")))


class Health:
    def on_get(self, req, resp):
        resp.media = {"status": "ok"}


cors = falcon.CORSMiddleware(allow_origins=work.ORIGIN, expose_headers=work.EXPOSED)
app = falcon.App(middleware=[cors, Middleware()])
app.add_route("/contact", Form())
app.add_route("/newsletter", Form())
app.add_route("/hits", Hits())
app.add_route("/hits.svg", Badge())
app.add_route("/health", Health())
