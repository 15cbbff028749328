"""FastAPI, slowapi and SQLAlchemy, as their documentation says, under uvicorn.

slowapi keeps its counts in each worker's memory: cheaper than a shared table, and
inexact with two workers.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import orm
import work
from fastapi import Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

engine = create_engine(
    f"sqlite:///{work.DATABASE}",
    connect_args={"timeout": 10, "check_same_thread": False},
    pool_size=16,
)
orm.sync_each_commit(engine)
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


def opened() -> Iterator[orm.Store]:
    with Session(engine) as session:
        yield orm.Store(session)


Store = Annotated[orm.Store, Depends(opened)]
Form = dict[str, Any]


def answer(response, outcome):
    status, value = outcome
    if status != 200:
        return JSONResponse(value, status)
    response.headers["Cache-Control"] = "no-store"
    return value


def post(respond, request, response, form, store, header="referer"):
    told = request.headers.get(header, "")
    return answer(response, respond(store, form, request.client.host, told))


@app.post("/contact")
@limiter.limit(work.LIMIT["/contact"])
def contact(request: Request, response: Response, form: Form, store: Store):
    return post(work.contact, request, response, form, store)


@app.post("/newsletter")
@limiter.limit(work.LIMIT["/newsletter"])
def newsletter(request: Request, response: Response, form: Form, store: Store):
    return post(work.newsletter, request, response, form, store)


@app.post("/hits")
@limiter.limit(work.LIMIT["/hits"])
def hit(request: Request, response: Response, form: Form, store: Store):
    return post(work.hit, request, response, form, store, "user-agent")


@app.get("/hits")
def read(response: Response, page: str, store: Store):
    return answer(response, work.read(store, page))


@app.get("/hits.svg")
@limiter.limit(work.LIMIT["/hits.svg"])
def badge(request: Request, response: Response, page: str, store: Store):
    status, value = work.badge(store, page)
    if status != 200:
        return answer(response, (status, value))
    no_store = {"Cache-Control": "no-store"}
    return Response(value, media_type="image/svg+xml", headers=no_store)


@app.get("/health")
def health():
    return {"status": "ok"}
