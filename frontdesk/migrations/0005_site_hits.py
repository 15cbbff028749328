"""Every page's hits of a day in one row, and /index.html counts as its folder."""

import re

from peewee import SqliteDatabase

ADD = (
    "ON CONFLICT (page, day) DO UPDATE SET hits = hit.hits + excluded.hits, "
    "visitors = hit.visitors + excluded.visitors"
)


def up(migrator, db):
    mark = "?" if isinstance(db, SqliteDatabase) else "%s"

    def run(sql, *params):
        return db.execute_sql(sql.replace("?", mark), params)

    named = run("SELECT page FROM page WHERE replace(page, '/index.htm', '') <> page")
    for (page,) in named.fetchall():
        folder = re.sub(r"(?:/index\.html?)+$", "", page) or "/"
        if folder == page:
            continue
        run("INSERT INTO page VALUES (?, 0, 0) ON CONFLICT DO NOTHING", folder)
        run(
            "UPDATE page SET hits = page.hits + old.hits, "
            "visitors = page.visitors + old.visitors "
            "FROM page AS old WHERE page.page = ? AND old.page = ?",
            *(folder, page),
        )
        run(
            "INSERT INTO hit (page, day, hits, visitors) "  # noqa: S608
            f"SELECT ?, day, hits, visitors FROM hit WHERE page = ? {ADD}",
            *(folder, page),
        )
        run("DELETE FROM hit WHERE page = ?", page)
        run("DELETE FROM page WHERE page = ?", page)
    run(
        "UPDATE tally SET n = (SELECT count(*) FROM page WHERE page <> '/(other)') "
        "WHERE name = 'pages' AND period = ''"
    )
    run(
        "INSERT INTO hit (page, day, hits, visitors) "
        "SELECT '*', day, sum(hits), sum(visitors) FROM hit GROUP BY day"
    )
