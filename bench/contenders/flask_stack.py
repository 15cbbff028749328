"""Flask, flask-cors, Flask-Limiter and Flask-SQLAlchemy, as their documentation says.

Flask-Limiter keeps its counts in each worker's memory: cheaper than a shared table,
and inexact with two workers.
"""

import time

import work
from flask import Flask, Response, jsonify, request
from flask_cors import CORS
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{work.DATABASE}"
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": 10}}
CORS(app, origins=[work.ORIGIN], expose_headers=work.EXPOSED)
limiter = Limiter(get_remote_address, app=app, storage_uri="memory://")


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(app, model_class=Base)


class Message(db.Model):
    id: Mapped[str] = mapped_column(primary_key=True)
    received_at: Mapped[float]
    name: Mapped[str]
    email: Mapped[str]
    subject: Mapped[str]
    message: Mapped[str]
    page: Mapped[str]
    client: Mapped[str]


class Receipt(db.Model):
    key: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    expires_at: Mapped[float]


class Delivery(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    ref: Mapped[str]
    created_at: Mapped[float]
    due_at: Mapped[float | None]


class Subscriber(db.Model):
    id: Mapped[str] = mapped_column(primary_key=True)
    mailbox: Mapped[str]
    email: Mapped[str]
    name: Mapped[str]
    page: Mapped[str]
    client: Mapped[str]
    asked_at: Mapped[float]


class Tally(db.Model):
    name: Mapped[str] = mapped_column(primary_key=True)
    period: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]


class Page(db.Model):
    page: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    visitors: Mapped[int]


class Hit(db.Model):
    page: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    visitors: Mapped[int]


class Visitor(db.Model):
    day: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(primary_key=True)


with app.app_context():

    @event.listens_for(db.engine, "connect")
    def set_pragmas(connection, record):
        connection.execute("PRAGMA synchronous = full")


@app.after_request
def add_headers(response):
    response.headers["Cache-Control"] = "no-store"
    response.vary.add("Origin")  # flask-cors leaves it out for a single origin
    return response


def refuse(errors):
    return jsonify(work.sorry(errors)), 422


@app.post("/contact")
@limiter.limit(work.LIMIT["contact"])
def contact():
    row, key = work.contact(
        request.get_json(), request.remote_addr, request.referrer or ""
    )
    if row is None:
        return refuse(key)
    now, found = row["received_at"], row["id"]
    claim = insert(Receipt).values(
        key=key, message_id=found, expires_at=now + work.DUPLICATE_SECONDS
    )
    claim = claim.on_conflict_do_update(
        index_elements=["key"],
        set_={
            "message_id": claim.excluded.message_id,
            "expires_at": claim.excluded.expires_at,
        },
        where=Receipt.expires_at <= now,
    )
    if db.session.execute(claim).rowcount:
        db.session.add(Message(**row))
        db.session.add(Delivery(kind="contact", ref=found, created_at=now, due_at=now))
    else:
        found = db.session.get(Receipt, key).message_id
    db.session.commit()
    return jsonify(work.thanks(id=found))


@app.post("/newsletter")
@limiter.limit(work.LIMIT["newsletter"])
def newsletter():
    row = work.signup(request.get_json(), request.remote_addr, request.referrer or "")
    if row is None:
        return refuse([{"code": "TYPE_EMAIL"}])
    now = row["asked_at"]
    add = insert(Subscriber).values(**row).on_conflict_do_nothing()
    if db.session.execute(add).rowcount:
        day = work.today(now).isoformat()
        count = insert(Tally).values(name="mails", period=day, n=1)
        count = count.on_conflict_do_update(
            index_elements=["name", "period"],
            set_={"n": Tally.n + 1},
            where=Tally.n < work.MAILS_PER_DAY,
        )
        if db.session.execute(count).rowcount:
            db.session.add(
                Delivery(kind="confirm", ref=row["id"], created_at=now, due_at=now)
            )
    db.session.commit()
    return jsonify(work.thanks())


def totals(page):
    row = db.session.get(Page, page)
    return (row.hits, row.visitors) if row else (0, 0)


@app.post("/hits")
@limiter.limit(work.LIMIT["hits"])
def hit():
    page = work.page_of(request.get_json().get("page"))
    if page is None:
        return refuse([{"code": "TYPE_TEXT"}])
    agent = request.user_agent.string
    if work.CRAWLERS.search(agent):
        hits, visitors = totals(page)
        sums = {"page": page, "hits": hits, "visitors": visitors}
        return jsonify({**sums, "counted": False, "reason": "crawler"})
    day = work.today(time.time()).isoformat()
    visitor = work.visitor(page, request.remote_addr, agent, day)
    seen = insert(Visitor).values(day=day, hash=visitor).on_conflict_do_nothing()
    new = db.session.execute(seen).rowcount
    sums = (
        insert(Page)
        .values(page=page, hits=1, visitors=new)
        .on_conflict_do_update(
            index_elements=["page"],
            set_={"hits": Page.hits + 1, "visitors": Page.visitors + new},
        )
        .returning(Page.hits, Page.visitors)
    )
    hits, visitors = db.session.execute(sums).one()
    db.session.execute(
        insert(Hit)
        .values(page=page, day=day, hits=1, visitors=new)
        .on_conflict_do_update(
            index_elements=["page", "day"],
            set_={"hits": Hit.hits + 1, "visitors": Hit.visitors + new},
        )
    )
    db.session.commit()
    return jsonify(page=page, hits=hits, visitors=visitors, counted=True)


@app.get("/hits")
def read():
    page = work.page_of(request.args.get("page"))
    if page is None:
        return refuse([{"code": "TYPE_TEXT"}])
    hits, visitors = totals(page)
    last = work.today(time.time())
    rows = db.session.execute(
        select(Hit.day, Hit.hits, Hit.visitors).where(
            Hit.page == page, Hit.day >= work.month_ago(last)
        )
    )
    days = work.days(rows, last)
    return jsonify(page=page, hits=hits, visitors=visitors, days=days)


@app.get("/hits.svg")
@limiter.limit(work.LIMIT["hits"])
def badge():
    page = work.page_of(request.args.get("page"))
    if page is None:
        return refuse([{"code": "TYPE_TEXT"}])
    return Response(work.badge(totals(page)[0]), mimetype="image/svg+xml")


@app.get("/health")
def health():
    return jsonify(status="ok")
