"""Flask, flask-cors, Flask-Limiter and Flask-SQLAlchemy, as their documentation says.

Flask-Limiter keeps its counts in each worker's memory: cheaper than a shared table,
and inexact with two workers.
"""

import orm
import work
from flask import Flask, Response, jsonify, request
from flask_cors import CORS
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_sqlalchemy import SQLAlchemy

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{work.DATABASE}"
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"connect_args": {"timeout": 10}}
CORS(app, origins=[work.ORIGIN], expose_headers=work.EXPOSED)
limiter = Limiter(get_remote_address, app=app, storage_uri="memory://")
db = SQLAlchemy(app, model_class=orm.Base)
store = orm.Store(db.session)
with app.app_context():
    orm.sync_each_commit(db.engine)


@app.after_request
def add_headers(response):
    response.headers["Cache-Control"] = "no-store"
    response.vary.add("Origin")  # flask-cors leaves it out for a single origin
    return response


def answer(outcome):
    status, value = outcome
    if isinstance(value, str):
        return Response(value, mimetype="image/svg+xml")
    return jsonify(value), status


def post(respond, told):
    return answer(respond(store, request.get_json(), request.remote_addr, told))


@app.post("/contact")
@limiter.limit(work.LIMIT["/contact"])
def contact():
    return post(work.contact, request.referrer or "")


@app.post("/newsletter")
@limiter.limit(work.LIMIT["/newsletter"])
def newsletter():
    return post(work.newsletter, request.referrer or "")


@app.post("/hits")
@limiter.limit(work.LIMIT["/hits"])
def hit():
    return post(work.hit, request.user_agent.string)


@app.get("/hits")
def read():
    return answer(work.read(store, request.args.get("page")))


@app.get("/hits.svg")
@limiter.limit(work.LIMIT["/hits.svg"])
def badge():
    return answer(work.badge(store, request.args.get("page")))


@app.get("/health")
def health():
    return jsonify(status="ok")
