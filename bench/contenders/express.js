// Express, better-sqlite3, cors and express-rate-limit, as their documentation says.
//
// express-rate-limit keeps its counts in each worker's memory: cheaper than a shared
// table, and inexact with two workers. The database calls block the one thread, which
// is how better-sqlite3 is meant to be used.
"use strict";
const cluster = require("node:cluster");
const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const Database = require("better-sqlite3");
const cors = require("cors");
const express = require("express");
const { rateLimit } = require("express-rate-limit");

const { DATABASE, ORIGIN, PORT } = process.env;
const WORKERS = Number(process.env.WORKERS);
const CRAWLERS = /bot\b|crawl|spider|slurp|monitor|uptime|lighthouse/i;
const EMAIL = /^[^@\s]{1,64}@[^@\s]+\.[^@\s]+$/;
const EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID";
const FIELDS = { name: 200, email: 254, subject: 200, message: 10000 };
const MAILS_PER_DAY = 1000000;
const BADGE = fs.readFileSync(path.join(__dirname, "badge.svg"), "utf8").trim();
const KEY = crypto.createHash("sha256").update(DATABASE).digest();

function serve() {
  const db = new Database(DATABASE, { timeout: 10000 });
  db.pragma("synchronous = FULL");
  const sql = {
    claim: db.prepare(
      "INSERT INTO receipt VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE " +
        "SET message_id = excluded.message_id, expires_at = excluded.expires_at " +
        "WHERE expires_at <= ?",
    ),
    claimed: db.prepare("SELECT message_id FROM receipt WHERE key = ?").pluck(),
    message: db.prepare(
      "INSERT INTO message VALUES " +
        "(@id, @received_at, @name, @email, @subject, @message, @page, @client)",
    ),
    delivery: db.prepare(
      "INSERT INTO delivery (kind, ref, created_at, due_at) VALUES (?, ?, ?, ?)",
    ),
    subscriber: db.prepare(
      "INSERT INTO subscriber VALUES (@id, @mailbox, @email, @name, @page, @client, " +
        "@asked_at) ON CONFLICT (mailbox) DO NOTHING",
    ),
    tally: db.prepare(
      "INSERT INTO tally VALUES ('mails', ?, 1) ON CONFLICT (name, period) " +
        "DO UPDATE SET n = n + 1 WHERE n < ?",
    ),
    visitor: db.prepare("INSERT INTO visitor VALUES (?, ?) ON CONFLICT DO NOTHING"),
    page: db.prepare(
      "INSERT INTO page VALUES (?, 1, ?) ON CONFLICT (page) DO UPDATE " +
        "SET hits = hits + 1, visitors = visitors + excluded.visitors " +
        "RETURNING hits, visitors",
    ),
    hit: db.prepare(
      "INSERT INTO hit VALUES (?, ?, 1, ?) ON CONFLICT (page, day) DO UPDATE " +
        "SET hits = hits + 1, visitors = visitors + excluded.visitors",
    ),
    totals: db.prepare("SELECT hits, visitors FROM page WHERE page = ?"),
    days: db.prepare(
      "SELECT day AS date, hits, visitors FROM hit WHERE page = ? AND day >= ?",
    ),
  };

  const newId = (now) =>
    Math.floor(now * 1000).toString(16).padStart(12, "0") +
    crypto.randomBytes(8).toString("hex");
  const keyed = (...parts) =>
    crypto.createHmac("sha1", KEY).update(parts.join("\0")).digest("hex");
  const today = () => new Date().toISOString().slice(0, 10);
  const clientOf = (req) => req.ip.replace("::ffff:", "");
  const truncated = (client) => client.replace(/\.\d+$/, ".0");
  const textOf = (value) => String(value ?? "").trim();
  const thanks = (more) => ({
    ok: true,
    success: true,
    next: ORIGIN + "/thanks",
    message: "Thank you, your message is on its way.",
    ...more,
  });
  const sorry = (errors) => ({
    ok: false,
    success: false,
    error: "Please check the form.",
    message: "Please check the form.",
    errors,
  });
  const totals = (page) => sql.totals.get(page) ?? { hits: 0, visitors: 0 };

  function pageOf(value) {
    if (typeof value !== "string" || !value) return null;
    const cut = value.replace(/^https?:\/\/[^/?#]*/, "").split(/[?#]/)[0];
    const page = "/" + cut.replace(/^\/+|\/+$/g, "");
    return page.length <= 200 && !/\p{C}/u.test(page) ? page : null;
  }

  const store = db.transaction((row, key) => {
    const now = row.received_at;
    if (!sql.claim.run(key, row.id, now + 600, now).changes) return sql.claimed.get(key);
    sql.message.run(row);
    sql.delivery.run("contact", row.id, now, now);
    return row.id;
  });
  const ask = db.transaction((row) => {
    const now = row.asked_at;
    if (sql.subscriber.run(row).changes && sql.tally.run(today(), MAILS_PER_DAY).changes)
      sql.delivery.run("confirm", row.id, now, now);
  });
  const count = db.transaction((page, day, visitor) => {
    const fresh = sql.visitor.run(day, visitor).changes;
    const sums = sql.page.get(page, fresh);
    sql.hit.run(page, day, fresh);
    return sums;
  });

  const windows = (...seconds) =>
    seconds.map((s) =>
      rateLimit({
        windowMs: s * 1000,
        limit: 999999,
        standardHeaders: "draft-8",
        legacyHeaders: false,
        identifier: `${s}s`,
      }),
    );
  const app = express();
  app.use(cors({ origin: [ORIGIN], exposedHeaders: EXPOSED }));
  app.use((req, res, next) => {
    res.set("Cache-Control", "no-store");
    next();
  });
  app.use(express.json({ limit: "64kb" }));

  app.post("/contact", ...windows(1, 60), (req, res) => {
    const text = {};
    const errors = [];
    for (const [name, most] of Object.entries(FIELDS)) {
      text[name] = textOf(req.body[name]);
      if (text[name].length > most) errors.push({ code: "TOO_LONG", field: name });
    }
    if (!text.message) errors.push({ code: "REQUIRED_FIELD_MISSING", field: "message" });
    if (!EMAIL.test(text.email)) errors.push({ code: "TYPE_EMAIL", field: "email" });
    if (errors.length) return res.status(422).json(sorry(errors));
    const now = Date.now() / 1000;
    const client = clientOf(req);
    const page = textOf(req.get("Referer")).split("?")[0];
    const row = { id: newId(now), received_at: now, ...text, page };
    row.client = truncated(client);
    const key = keyed("body", client, ...Object.values(text));
    res.json(thanks({ id: store.immediate(row, key) }));
  });

  app.post("/newsletter", ...windows(1, 60), (req, res) => {
    const email = textOf(req.body.email);
    const name = textOf(req.body.name);
    if (email.length > 254 || name.length > 200 || !EMAIL.test(email))
      return res.status(422).json(sorry([{ code: "TYPE_EMAIL" }]));
    const now = Date.now() / 1000;
    ask.immediate({
      id: newId(now),
      mailbox: keyed("mailbox", email.toLowerCase()),
      email,
      name,
      page: textOf(req.get("Referer")).split("?")[0],
      client: truncated(clientOf(req)),
      asked_at: now,
    });
    res.json(thanks());
  });

  app.post("/hits", ...windows(60), (req, res) => {
    const page = pageOf(req.body.page);
    if (page === null) return res.status(422).json(sorry([{ code: "TYPE_TEXT" }]));
    const agent = req.get("User-Agent") ?? "";
    if (CRAWLERS.test(agent))
      return res.json({ page, ...totals(page), counted: false, reason: "crawler" });
    const day = today();
    const visitor = keyed(day, page, clientOf(req), agent).slice(0, 24);
    res.json({ page, ...count.immediate(page, day, visitor), counted: true });
  });

  app.get("/hits", (req, res) => {
    const page = pageOf(req.query.page);
    if (page === null) return res.status(422).json(sorry([{ code: "TYPE_TEXT" }]));
    const now = Date.now();
    const wanted = [];
    for (let n = 29; n >= 0; n--)
      wanted.push(new Date(now - n * 86400000).toISOString().slice(0, 10));
    const known = new Map(sql.days.all(page, wanted[0]).map((row) => [row.date, row]));
    const days = wanted.map((date) => known.get(date) ?? { date, hits: 0, visitors: 0 });
    res.json({ page, ...totals(page), days });
  });

  app.get("/hits.svg", ...windows(60), (req, res) => {
    const page = pageOf(req.query.page);
    if (page === null) return res.status(422).json(sorry([{ code: "TYPE_TEXT" }]));
    const hits = totals(page).hits.toLocaleString("en-US");
    const right = 10 + 7 * hits.length;
    const values = { hits, right, width: 31 + right, middle: 31 + right / 2 };
    res.type("image/svg+xml");
    res.send(BADGE.replace(/\{(\w+)\}/g, (_, name) => values[name]));
  });

  app.get("/health", (req, res) => res.json({ status: "ok" }));
  const server = app.listen(Number(PORT), "127.0.0.1");
  server.keepAliveTimeout = 100000;
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
}

if (WORKERS > 1 && cluster.isPrimary) {
  for (let n = 0; n < WORKERS; n++) cluster.fork();
  process.on("SIGTERM", () => process.exit(0));
} else {
  serve();
}
