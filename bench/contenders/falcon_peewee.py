"""Falcon and Peewee as their documentation shows them.

A middleware connects and closes for each request, models and atomic() do the rest.
The rate limit is the floor's: neither brings one.
"""

import falcon
import work
from peewee import (
    AutoField,
    CompositeKey,
    FloatField,
    IntegerField,
    Model,
    SqliteDatabase,
    TextField,
)

db = SqliteDatabase(
    work.DATABASE,
    pragmas={"journal_mode": "wal", "synchronous": "full"},
    timeout=10,
    lock_type="IMMEDIATE",
)
limits = work.Limits()


class Table(Model):
    class Meta:
        database = db


KINDS = {"": TextField, "a": AutoField, "f": FloatField, "i": IntegerField}


def model(name, keys, others):
    """Make the class that one would write out, a line for each column."""
    fields = {}
    for column in f"{keys} {others}".split():
        field, _, kind = column.partition(":")
        fields[field] = KINDS[kind](**{"primary_key": True} if column == keys else {})
    if " " in keys:
        fields["Meta"] = type("Meta", (), {"primary_key": CompositeKey(*keys.split())})
    return type(name, (Table,), fields)


Message, Receipt, Delivery, Subscriber, Tally, Page, Hit, Visitor = (
    model(name, *columns) for name, columns in work.TABLES.items()
)


def written(insert):
    return insert.as_rowcount().execute()


class Store:
    def keep(self, row, key):
        found, now = row["id"], row["received_at"]
        until = now + work.DUPLICATE_SECONDS
        claim = Receipt.insert(key=key, message_id=found, expires_at=until).on_conflict(
            conflict_target=[Receipt.key],
            preserve=[Receipt.message_id, Receipt.expires_at],
            where=Receipt.expires_at <= now,
        )
        with db.atomic():
            if not written(claim):
                return Receipt.get_by_id(key).message_id
            Message.create(**row)
            Delivery.create(kind="contact", ref=found, created_at=now, due_at=now)
        return found

    def ask(self, row, day):
        now = row["asked_at"]
        tally = Tally.insert(name="mails", period=day, n=1).on_conflict(
            conflict_target=[Tally.name, Tally.period],
            update={Tally.n: Tally.n + 1},
            where=Tally.n < work.MAILS_PER_DAY,
        )
        with db.atomic():
            subscriber = Subscriber.insert(**row).on_conflict_ignore()
            if written(subscriber) and written(tally):
                ref = row["id"]
                Delivery.create(kind="confirm", ref=ref, created_at=now, due_at=now)

    def count(self, page, day, visitor):
        with db.atomic():
            new = written(Visitor.insert(day=day, hash=visitor).on_conflict_ignore())
            Page.insert(page=page, hits=1, visitors=new).on_conflict(
                conflict_target=[Page.page],
                update={Page.hits: Page.hits + 1, Page.visitors: Page.visitors + new},
            ).execute()
            Hit.insert(page=page, day=day, hits=1, visitors=new).on_conflict(
                conflict_target=[Hit.page, Hit.day],
                update={Hit.hits: Hit.hits + 1, Hit.visitors: Hit.visitors + new},
            ).execute()
            return self.totals(page)

    def totals(self, page):
        row = Page.get_or_none(Page.page == page)
        return (row.hits, row.visitors) if row else (0, 0)

    def days(self, page, since):
        rows = Hit.select(Hit.day, Hit.hits, Hit.visitors)
        return rows.where(Hit.page == page, Hit.day >= since).tuples()


class PeeweeConnection:
    def process_request(self, req, resp):
        db.connect()

    def process_response(self, req, resp, resource, ok):
        if not db.is_closed():
            db.close()


class RateLimit:
    def process_resource(self, req, resp, resource, params):
        name = getattr(resource, "limited", {}).get(req.method)
        if name and not limits.allow(name, req.remote_addr):
            raise falcon.HTTPTooManyRequests


class Expose:
    """What falcon.CORSMiddleware leaves out: caches must tell origins apart."""

    def process_response(self, req, resp, resource, ok):
        resp.append_header("Vary", "Origin")
        resp.set_header("Cache-Control", "no-store")


store = Store()


def answer(resp, outcome):
    status, resp.media = outcome
    resp.status = falcon.code_to_http_status(status)


class Form:
    def __init__(self, name, respond):
        self.limited, self.respond = {"POST": name}, respond

    def on_post(self, req, resp):
        referer = req.referer or ""
        answer(resp, self.respond(store, req.media, req.remote_addr, referer))


class Hits:
    limited = {"POST": "hits"}

    def on_get(self, req, resp):
        answer(resp, work.read(store, req.get_param("page")))

    def on_post(self, req, resp):
        agent = req.user_agent or ""
        answer(resp, work.hit(store, req.media, req.remote_addr, agent))


class Badge:
    limited = {"GET": "hits"}

    def on_get(self, req, resp):
        status, value = work.badge(store, req.get_param("page"))
        if status != 200:
            return answer(resp, (status, value))
        resp.content_type, resp.text = "image/svg+xml", value


class Health:
    def on_get(self, req, resp):
        resp.media = {"status": "ok"}


cors = falcon.CORSMiddleware(allow_origins=work.ORIGIN, expose_headers=work.EXPOSED)
app = falcon.App(middleware=[cors, Expose(), RateLimit(), PeeweeConnection()])
app.add_route("/contact", Form("contact", work.contact))
app.add_route("/newsletter", Form("newsletter", work.newsletter))
app.add_route("/hits", Hits())
app.add_route("/hits.svg", Badge())
app.add_route("/health", Health())
