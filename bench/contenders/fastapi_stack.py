"""FastAPI, slowapi and SQLAlchemy, as their documentation says, under uvicorn.

slowapi keeps its counts in each worker's memory: cheaper than a shared table, and
inexact with two workers.
"""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import work
from fastapi import Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from sqlalchemy import create_engine, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(
    f"sqlite:///{work.DATABASE}",
    connect_args={"timeout": 10, "check_same_thread": False},
    pool_size=16,
)


@event.listens_for(engine, "connect")
def set_pragmas(connection, record):
    connection.execute("PRAGMA synchronous = full")


class Base(DeclarativeBase):
    pass


class Message(Base):
    __tablename__ = "message"
    id: Mapped[str] = mapped_column(primary_key=True)
    received_at: Mapped[float]
    name: Mapped[str]
    email: Mapped[str]
    subject: Mapped[str]
    message: Mapped[str]
    page: Mapped[str]
    client: Mapped[str]


class Receipt(Base):
    __tablename__ = "receipt"
    key: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    expires_at: Mapped[float]


class Delivery(Base):
    __tablename__ = "delivery"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    ref: Mapped[str]
    created_at: Mapped[float]
    due_at: Mapped[float | None]


class Subscriber(Base):
    __tablename__ = "subscriber"
    id: Mapped[str] = mapped_column(primary_key=True)
    mailbox: Mapped[str]
    email: Mapped[str]
    name: Mapped[str]
    page: Mapped[str]
    client: Mapped[str]
    asked_at: Mapped[float]


class Tally(Base):
    __tablename__ = "tally"
    name: Mapped[str] = mapped_column(primary_key=True)
    period: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]


class Page(Base):
    __tablename__ = "page"
    page: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    visitors: Mapped[int]


class Hit(Base):
    __tablename__ = "hit"
    page: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[str] = mapped_column(primary_key=True)
    hits: Mapped[int]
    visitors: Mapped[int]


class Visitor(Base):
    __tablename__ = "visitor"
    day: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(primary_key=True)


def session() -> Iterator[Session]:
    with Session(engine) as opened:
        yield opened


Db = Annotated[Session, Depends(session)]
Form = dict[str, Any]

limiter = Limiter(key_func=get_remote_address)
app = FastAPI()
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
app.add_middleware(
    CORSMiddleware,
    allow_origins=[work.ORIGIN],
    allow_methods=["GET", "POST"],
    allow_headers=["Content-Type"],
    expose_headers=[work.EXPOSED],
)


def refuse(errors):
    return JSONResponse(work.sorry(errors), 422)


@app.post("/contact")
@limiter.limit(work.LIMIT["contact"])
def contact(request: Request, response: Response, form: Form, db: Db):
    referer = request.headers.get("referer", "")
    row, key = work.contact(form, request.client.host, referer)
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
    if db.execute(claim).rowcount:
        db.add(Message(**row))
        db.add(Delivery(kind="contact", ref=found, created_at=now, due_at=now))
    else:
        found = db.get(Receipt, key).message_id
    db.commit()
    response.headers["Cache-Control"] = "no-store"
    return work.thanks(id=found)


@app.post("/newsletter")
@limiter.limit(work.LIMIT["newsletter"])
def newsletter(request: Request, response: Response, form: Form, db: Db):
    row = work.signup(form, request.client.host, request.headers.get("referer", ""))
    if row is None:
        return refuse([{"code": "TYPE_EMAIL"}])
    now = row["asked_at"]
    add = insert(Subscriber).values(**row).on_conflict_do_nothing()
    if db.execute(add).rowcount:
        day = work.today(now).isoformat()
        count = insert(Tally).values(name="mails", period=day, n=1)
        count = count.on_conflict_do_update(
            index_elements=["name", "period"],
            set_={"n": Tally.n + 1},
            where=Tally.n < work.MAILS_PER_DAY,
        )
        if db.execute(count).rowcount:
            db.add(Delivery(kind="confirm", ref=row["id"], created_at=now, due_at=now))
    db.commit()
    response.headers["Cache-Control"] = "no-store"
    return work.thanks()


def totals(db, page):
    row = db.get(Page, page)
    return (row.hits, row.visitors) if row else (0, 0)


@app.post("/hits")
@limiter.limit(work.LIMIT["hits"])
def hit(request: Request, response: Response, form: Form, db: Db):
    page = work.page_of(form.get("page"))
    if page is None:
        return refuse([{"code": "TYPE_TEXT"}])
    response.headers["Cache-Control"] = "no-store"
    agent = request.headers.get("user-agent", "")
    if work.CRAWLERS.search(agent):
        hits, visitors = totals(db, page)
        sums = {"page": page, "hits": hits, "visitors": visitors}
        return {**sums, "counted": False, "reason": "crawler"}
    day = work.today(time.time()).isoformat()
    visitor = work.visitor(page, request.client.host, agent, day)
    seen = insert(Visitor).values(day=day, hash=visitor).on_conflict_do_nothing()
    new = db.execute(seen).rowcount
    sums = (
        insert(Page)
        .values(page=page, hits=1, visitors=new)
        .on_conflict_do_update(
            index_elements=["page"],
            set_={"hits": Page.hits + 1, "visitors": Page.visitors + new},
        )
        .returning(Page.hits, Page.visitors)
    )
    hits, visitors = db.execute(sums).one()
    db.execute(
        insert(Hit)
        .values(page=page, day=day, hits=1, visitors=new)
        .on_conflict_do_update(
            index_elements=["page", "day"],
            set_={"hits": Hit.hits + 1, "visitors": Hit.visitors + new},
        )
    )
    db.commit()
    return {"page": page, "hits": hits, "visitors": visitors, "counted": True}


@app.get("/hits")
def read(response: Response, page: str, db: Db):
    path = work.page_of(page)
    if path is None:
        return refuse([{"code": "TYPE_TEXT"}])
    hits, visitors = totals(db, path)
    last = work.today(time.time())
    rows = db.execute(
        select(Hit.day, Hit.hits, Hit.visitors).where(
            Hit.page == path, Hit.day >= work.month_ago(last)
        )
    )
    response.headers["Cache-Control"] = "no-store"
    sums = {"page": path, "hits": hits, "visitors": visitors}
    return {**sums, "days": work.days(rows, last)}


@app.get("/hits.svg")
@limiter.limit(work.LIMIT["hits"])
def badge(request: Request, page: str, db: Db):
    path = work.page_of(page)
    if path is None:
        return refuse([{"code": "TYPE_TEXT"}])
    svg = work.badge(totals(db, path)[0])
    no_store = {"Cache-Control": "no-store"}
    return Response(svg, media_type="image/svg+xml", headers=no_store)


@app.get("/health")
def health():
    return {"status": "ok"}
