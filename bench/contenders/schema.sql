-- The tables of every contender but Frontdesk (and Isso): what its rows amount to.
-- bench/service.py adapts the few words that Postgres does not know.
PRAGMA journal_mode = wal;
CREATE TABLE message (
    id TEXT PRIMARY KEY, created_at DOUBLE PRECISION NOT NULL, page TEXT NOT NULL,
    client TEXT NOT NULL, name TEXT NOT NULL, email TEXT NOT NULL,
    subject TEXT NOT NULL, message TEXT NOT NULL
);
CREATE TABLE receipt (
    key TEXT PRIMARY KEY, message_id TEXT NOT NULL, expires_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX receipt_expires_at ON receipt (expires_at);
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, ref TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL, due_at DOUBLE PRECISION
);
CREATE INDEX delivery_due_at ON delivery (due_at);
CREATE TABLE subscriber (
    id TEXT PRIMARY KEY, created_at DOUBLE PRECISION NOT NULL, page TEXT NOT NULL,
    client TEXT NOT NULL, mailbox TEXT NOT NULL UNIQUE, email TEXT NOT NULL,
    name TEXT NOT NULL
);
CREATE TABLE tally (
    name TEXT NOT NULL, period TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (name, period)
);
CREATE TABLE page (
    page TEXT PRIMARY KEY, hits INTEGER NOT NULL, visitors INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE hit (
    page TEXT NOT NULL, day TEXT NOT NULL, hits INTEGER NOT NULL,
    visitors INTEGER NOT NULL, PRIMARY KEY (page, day)
) WITHOUT ROWID;
CREATE TABLE visitor (
    day TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (day, hash)
) WITHOUT ROWID;
CREATE TABLE bucket (key TEXT PRIMARY KEY, tat BIGINT NOT NULL) WITHOUT ROWID;
