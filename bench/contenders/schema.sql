-- The tables of every contender but Frontdesk (and Isso): what its rows amount to.
-- bench/service.py adapts the few words that Postgres does not know.
PRAGMA journal_mode = wal;
CREATE TABLE message (
    id TEXT PRIMARY KEY, created_at DOUBLE PRECISION, page TEXT, client TEXT,
    name TEXT, email TEXT, subject TEXT, message TEXT
);
CREATE TABLE receipt (key TEXT PRIMARY KEY, message_id TEXT, expires_at DOUBLE PRECISION);
CREATE INDEX receipt_expires_at ON receipt (expires_at);
CREATE TABLE delivery (
    id INTEGER PRIMARY KEY, kind TEXT, ref TEXT,
    created_at DOUBLE PRECISION, due_at DOUBLE PRECISION
);
CREATE INDEX delivery_due_at ON delivery (due_at);
CREATE TABLE subscriber (
    id TEXT PRIMARY KEY, created_at DOUBLE PRECISION, page TEXT, client TEXT,
    mailbox TEXT UNIQUE, email TEXT, name TEXT
);
CREATE TABLE tally (name TEXT, period TEXT, n INTEGER, PRIMARY KEY (name, period));
CREATE TABLE page (page TEXT PRIMARY KEY, hits INTEGER, visitors INTEGER) WITHOUT ROWID;
CREATE TABLE hit (
    page TEXT, day TEXT, hits INTEGER, visitors INTEGER, PRIMARY KEY (page, day)
) WITHOUT ROWID;
CREATE TABLE visitor (day TEXT, hash TEXT, PRIMARY KEY (day, hash)) WITHOUT ROWID;
CREATE TABLE bucket (key TEXT PRIMARY KEY, tat BIGINT) WITHOUT ROWID;
