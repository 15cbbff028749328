// What both Node contenders do, apart from their framework: better-sqlite3, checks and
// answers. The database calls block the one thread, as better-sqlite3 is meant to be
// used. Each request's function returns [status, what to answer]; a badge is a string.
"use strict";
const cluster = require("node:cluster");
const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const Database = require("better-sqlite3");

const { ALLOWED_ORIGINS: ORIGIN, WEB_CONCURRENCY: WORKERS } = process.env;
const DATABASE = process.env.DATABASE_URL.replace("sqlite:///", "");
const CRAWLERS = /bot\b|crawl|spider|slurp|monitor|uptime|lighthouse/i;
const EMAIL = /^[^@\s]{1,64}@[^@\s]+\.[^@\s]+$/;
const FIELDS = { name: 200, email: 254, subject: 200, message: 10000 };
const MAILS_PER_DAY = 1000000;
const read = (name) => fs.readFileSync(path.join(__dirname, name), "utf8").trim();
const BADGE = read("badge.svg");
const KEY = crypto.createHash("sha256").update(DATABASE).digest();
exports.ORIGIN = ORIGIN;
exports.EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID";
exports.QUOTA = 999999;

// Run start() in each of WEB_CONCURRENCY processes.
exports.serve = (start) => {
  if (WORKERS > 1 && cluster.isPrimary)
    for (let n = 0; n < WORKERS; n++) cluster.fork();
  else start();
};

const keyed = (...parts) =>
  crypto.createHmac("sha1", KEY).update(parts.join("\0")).digest("hex");
const dayOf = (time) => new Date(time).toISOString().slice(0, 10);
const textOf = (value) => String(value ?? "").trim();
const newRow = (client, referer) => ({
  id: Date.now().toString(16).padStart(12, "0") + crypto.randomBytes(8).toString("hex"),
  created_at: Date.now() / 1000,
  page: textOf(referer).split("?")[0],
  client: client.replace(/\.\d+$/, ".0"),
});
const pageOf = (value) => {
  if (typeof value !== "string" || !value) return null;
  const cut = value.replace(/^https?:\/\/[^/?#]*/, "").split(/[?#]/)[0];
  const page = "/" + cut.replace(/^\/+|\/+$/g, "");
  return page.length <= 200 && !/\p{C}/u.test(page) ? page : null;
};
const thanks = (more) => {
  const message = "Thank you, your message is on its way.";
  return [200, { ok: true, success: true, next: ORIGIN + "/thanks", message, ...more }];
};
const sorry = (code) => {
  const text = "Please check the form.";
  const says = { ok: false, success: false, error: text, message: text };
  return [422, { ...says, errors: [{ code }] }];
};

exports.open = () => {
  const db = new Database(DATABASE, { timeout: 10000 });
  db.pragma("synchronous = FULL");
  const sql = {};
  for (const part of read("work.sql").split(";")) {
    const [name, statement] = part.trim().split(/: ([^]*)/);
    sql[name] = db.prepare(statement);
  }
  const totals = (page) => sql.totals.get(page) ?? { hits: 0, visitors: 0 };
  const keep = db.transaction((row, key) => {
    const now = row.created_at;
    if (!sql.claim.get(key, row.id, now + 600, now)) return sql.claimed.get(key).message_id;
    sql.message.run(...Object.values(row));
    sql.delivery.run("contact", row.id, now, now);
    return row.id;
  }).immediate;
  const ask = db.transaction((row) => {
    const now = row.created_at;
    if (!sql.subscriber.get(...Object.values(row))) return;
    if (sql.tally.get(dayOf(Date.now()), MAILS_PER_DAY))
      sql.delivery.run("confirm", row.id, now, now);
  }).immediate;
  const count = db.transaction((page, day, visitor) => {
    const fresh = sql.visitor.get(day, visitor) ? 1 : 0;
    const sums = sql.page.get(page, fresh);
    sql.hit.run(page, day, fresh);
    return sums;
  }).immediate;

  return {
    contact(form, client, headers) {
      const text = {};
      for (const [name, most] of Object.entries(FIELDS)) {
        text[name] = textOf(form[name]);
        if (text[name].length > most) return sorry("TOO_LONG");
      }
      if (!text.message) return sorry("REQUIRED_FIELD_MISSING");
      if (!EMAIL.test(text.email)) return sorry("TYPE_EMAIL");
      const key = keyed("body", client, ...Object.values(text));
      return thanks({ id: keep({ ...newRow(client, headers.referer), ...text }, key) });
    },
    newsletter(form, client, headers) {
      const email = textOf(form.email);
      const name = textOf(form.name);
      if (email.length > 254 || name.length > 200 || !EMAIL.test(email))
        return sorry("TYPE_EMAIL");
      const mailbox = keyed("mailbox", email.toLowerCase());
      ask({ ...newRow(client, headers.referer), mailbox, email, name });
      return thanks();
    },
    hit(form, client, headers) {
      const page = pageOf(form.page);
      if (page === null) return sorry("TYPE_TEXT");
      const agent = headers["user-agent"] ?? "";
      if (CRAWLERS.test(agent))
        return [200, { page, ...totals(page), counted: false, reason: "crawler" }];
      const day = dayOf(Date.now());
      const visitor = keyed(day, page, client, agent).slice(0, 24);
      return [200, { page, ...count(page, day, visitor), counted: true }];
    },
    read(value) {
      const page = pageOf(value);
      if (page === null) return sorry("TYPE_TEXT");
      const now = Date.now();
      const wanted = Array.from({ length: 30 }, (_, n) => dayOf(now - (29 - n) * 86400000));
      const known = new Map(sql.days.all(page, wanted[0]).map((row) => [row.day, row]));
      const days = wanted.map((date) => {
        const { hits, visitors } = known.get(date) ?? { hits: 0, visitors: 0 };
        return { date, hits, visitors };
      });
      return [200, { page, ...totals(page), days }];
    },
    badge(value) {
      const page = pageOf(value);
      if (page === null) return sorry("TYPE_TEXT");
      const hits = totals(page).hits.toLocaleString("en-US");
      const right = 10 + 7 * hits.length;
      const values = { hits, right, width: 31 + right, middle: 31 + right / 2 };
      return [200, BADGE.replace(/\{(\w+)\}/g, (_, name) => values[name])];
    },
  };
};
