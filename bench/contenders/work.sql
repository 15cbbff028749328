claim: INSERT INTO receipt VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE
SET message_id = excluded.message_id, expires_at = excluded.expires_at
WHERE receipt.expires_at <= ? RETURNING 1;
claimed: SELECT message_id FROM receipt WHERE key = ?;
message: INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?);
delivery: INSERT INTO delivery (kind, ref, created_at, due_at) VALUES (?, ?, ?, ?);
subscriber: INSERT INTO subscriber VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (mailbox) DO NOTHING RETURNING 1;
tally: INSERT INTO tally VALUES ('mails', ?, 1) ON CONFLICT (name, period)
DO UPDATE SET n = tally.n + 1 WHERE tally.n < ? RETURNING 1;
visitor: INSERT INTO visitor VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1;
page: INSERT INTO page VALUES (?, 1, ?) ON CONFLICT (page) DO UPDATE
SET hits = page.hits + 1, visitors = page.visitors + excluded.visitors
RETURNING hits, visitors;
hit: INSERT INTO hit VALUES (?, ?, 1, ?) ON CONFLICT (page, day) DO UPDATE
SET hits = hit.hits + 1, visitors = hit.visitors + excluded.visitors;
totals: SELECT hits, visitors FROM page WHERE page = ?;
days: SELECT day, hits, visitors FROM hit WHERE page = ? AND day >= ?
