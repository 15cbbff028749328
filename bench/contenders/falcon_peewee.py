"""Falcon and Peewee as their documentation shows them.

A middleware connects and closes for each request, models and atomic() do the rest.
The rate limit is the floor's: neither brings one.
"""

import time

import falcon
import work
from peewee import (
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


class Message(Table):
    id = TextField(primary_key=True)
    received_at = FloatField()
    name = TextField()
    email = TextField()
    subject = TextField()
    message = TextField()
    page = TextField()
    client = TextField()


class Receipt(Table):
    key = TextField(primary_key=True)
    message_id = TextField()
    expires_at = FloatField(index=True)


class Delivery(Table):
    kind = TextField()
    ref = TextField()
    created_at = FloatField()
    due_at = FloatField(null=True, index=True)


class Subscriber(Table):
    id = TextField(primary_key=True)
    mailbox = TextField(unique=True)
    email = TextField()
    name = TextField()
    page = TextField()
    client = TextField()
    asked_at = FloatField()


class Tally(Table):
    name = TextField()
    period = TextField()
    n = IntegerField()

    class Meta:
        primary_key = CompositeKey("name", "period")


class Page(Table):
    page = TextField(primary_key=True)
    hits = IntegerField()
    visitors = IntegerField()


class Hit(Table):
    page = TextField()
    day = TextField()
    hits = IntegerField()
    visitors = IntegerField()

    class Meta:
        primary_key = CompositeKey("page", "day")


class Visitor(Table):
    day = TextField()
    hash = TextField()

    class Meta:
        primary_key = CompositeKey("day", "hash")


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


def refuse(resp, errors):
    resp.status, resp.media = falcon.HTTP_422, work.sorry(errors)


class Contact:
    limited = {"POST": "contact"}

    def on_post(self, req, resp):
        row, key = work.contact(req.media, req.remote_addr, req.referer or "")
        if row is None:
            return refuse(resp, key)
        now, found = row["received_at"], row["id"]
        with db.atomic():
            claimed = (
                Receipt.insert(
                    key=key, message_id=found, expires_at=now + work.DUPLICATE_SECONDS
                )
                .on_conflict(
                    conflict_target=[Receipt.key],
                    preserve=[Receipt.message_id, Receipt.expires_at],
                    where=Receipt.expires_at <= now,
                )
                .as_rowcount()
                .execute()
            )
            if claimed:
                Message.create(**row)
                Delivery.create(kind="contact", ref=found, created_at=now, due_at=now)
            else:
                found = Receipt.get_by_id(key).message_id
        resp.media = work.thanks(id=found)


class Newsletter:
    limited = {"POST": "newsletter"}

    def on_post(self, req, resp):
        row = work.signup(req.media, req.remote_addr, req.referer or "")
        if row is None:
            return refuse(resp, [{"code": "TYPE_EMAIL"}])
        now = row["asked_at"]
        with db.atomic():
            insert = Subscriber.insert(**row).on_conflict_ignore()
            if insert.as_rowcount().execute():
                day = work.today(now).isoformat()
                counted = (
                    Tally.insert(name="mails", period=day, n=1)
                    .on_conflict(
                        conflict_target=[Tally.name, Tally.period],
                        update={Tally.n: Tally.n + 1},
                        where=Tally.n < work.MAILS_PER_DAY,
                    )
                    .as_rowcount()
                    .execute()
                )
                if counted:
                    Delivery.create(
                        kind="confirm", ref=row["id"], created_at=now, due_at=now
                    )
        resp.media = work.thanks()


def totals(page):
    row = Page.get_or_none(Page.page == page)
    return (row.hits, row.visitors) if row else (0, 0)


class Hits:
    limited = {"POST": "hits"}

    def on_get(self, req, resp):
        page = work.page_of(req.get_param("page"))
        if page is None:
            return refuse(resp, [{"code": "TYPE_TEXT"}])
        hits, visitors = totals(page)
        last = work.today(time.time())
        rows = Hit.select(Hit.day, Hit.hits, Hit.visitors).where(
            Hit.page == page, Hit.day >= work.month_ago(last)
        )
        sums = {"page": page, "hits": hits, "visitors": visitors}
        resp.media = {**sums, "days": work.days(rows.tuples(), last)}

    def on_post(self, req, resp):
        page = work.page_of(req.media.get("page"))
        if page is None:
            return refuse(resp, [{"code": "TYPE_TEXT"}])
        agent = req.user_agent or ""
        if work.CRAWLERS.search(agent):
            hits, visitors = totals(page)
            sums = {"page": page, "hits": hits, "visitors": visitors}
            resp.media = {**sums, "counted": False, "reason": "crawler"}
            return
        day = work.today(time.time()).isoformat()
        visitor = work.visitor(page, req.remote_addr, agent, day)
        with db.atomic():
            seen = Visitor.insert(day=day, hash=visitor).on_conflict_ignore()
            new = seen.as_rowcount().execute()
            Page.insert(page=page, hits=1, visitors=new).on_conflict(
                conflict_target=[Page.page],
                update={Page.hits: Page.hits + 1, Page.visitors: Page.visitors + new},
            ).execute()
            Hit.insert(page=page, day=day, hits=1, visitors=new).on_conflict(
                conflict_target=[Hit.page, Hit.day],
                update={Hit.hits: Hit.hits + 1, Hit.visitors: Hit.visitors + new},
            ).execute()
            hits, visitors = totals(page)
        sums = {"page": page, "hits": hits, "visitors": visitors}
        resp.media = {**sums, "counted": True}


class Badge:
    limited = {"GET": "hits"}

    def on_get(self, req, resp):
        page = work.page_of(req.get_param("page"))
        if page is None:
            return refuse(resp, [{"code": "TYPE_TEXT"}])
        resp.content_type = "image/svg+xml"
        resp.text = work.badge(totals(page)[0])


class Health:
    def on_get(self, req, resp):
        resp.media = {"status": "ok"}


app = falcon.App(
    middleware=[
        falcon.CORSMiddleware(allow_origins=work.ORIGIN, expose_headers=work.EXPOSED),
        Expose(),
        RateLimit(),
        PeeweeConnection(),
    ]
)
app.add_route("/contact", Contact())
app.add_route("/newsletter", Newsletter())
app.add_route("/hits", Hits())
app.add_route("/hits.svg", Badge())
app.add_route("/health", Health())
