// What both Node contenders do, apart from their framework: better-sqlite3, checks and
// answers. The database calls block the one thread, as better-sqlite3 is meant to be
// used. Each request's function returns [status, what to answer].
"use strict";
const cluster = require("node:cluster");
const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const Database = require("better-sqlite3");

const { DATABASE, ORIGIN } = process.env;
const WORKERS = Number(process.env.WORKERS);
const CRAWLERS = /bot\b|crawl|spider|slurp|monitor|uptime|lighthouse/i;
const EMAIL = /^[^@\s]{1,64}@[^@\s]+\.[^@\s]+$/;
const FIELDS = { name: 200, email: 254, subject: 200, message: 10000 };
const MESSAGE = ["id", "received_at", ...Object.keys(FIELDS), "page", "client"];
const SUBSCRIBER = ["id", "mailbox", "email", "name", "page", "client", "asked_at"];
const MAILS_PER_DAY = 1000000;
const BADGE = fs.readFileSync(path.join(__dirname, "badge.svg"), "utf8").trim();
const KEY = crypto.createHash("sha256").update(DATABASE).digest();
exports.ORIGIN = ORIGIN;
exports.EXPOSED = "Retry-After, RateLimit, RateLimit-Policy, X-Request-ID";
exports.QUOTA = 999999;

// Run start() in each of WORKERS processes.
exports.serve = (start) => {
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
  if (WORKERS > 1 && cluster.isPrimary)
    for (let n = 0; n < WORKERS; n++) cluster.fork();
  else start();
};

exports.open = () => {
  const db = new Database(DATABASE, { timeout: 10000 });
  db.pragma("synchronous = FULL");
  const sql = {};
  const text = fs.readFileSync(path.join(__dirname, "work.sql"), "utf8");
  for (const part of text.split(";")) {
    const [name, statement] = part.trim().split(/: ([^]*)/);
    sql[name] = db.prepare(statement);
  }

  const keyed = (...parts) =>
    crypto.createHmac("sha1", KEY).update(parts.join("\0")).digest("hex");
  const today = () => new Date().toISOString().slice(0, 10);
  const textOf = (value) => String(value ?? "").trim();
  const rowOf = (client, referer) => ({
    id: Date.now().toString(16).padStart(12, "0") + crypto.randomBytes(8).toString("hex"),
    page: textOf(referer).split("?")[0],
    client: client.replace(/\.\d+$/, ".0"),
  });
  const totals = (page) => sql.totals.get(page) ?? { hits: 0, visitors: 0 };
  const thanks = (more) => {
    const message = "Thank you, your message is on its way.";
    return [200, { ok: true, success: true, next: ORIGIN + "/thanks", message, ...more }];
  };
  const sorry = (...errors) => {
    const text = "Please check the form.";
    return [422, { ok: false, success: false, error: text, message: text, errors }];
  };
  const pageOf = (value) => {
    if (typeof value !== "string" || !value) return null;
    const cut = value.replace(/^https?:\/\/[^/?#]*/, "").split(/[?#]/)[0];
    const page = "/" + cut.replace(/^\/+|\/+$/g, "");
    return page.length <= 200 && !/\p{C}/u.test(page) ? page : null;
  };

  const keep = db.transaction((row, key) => {
    const now = row.received_at;
    if (!sql.claim.get(key, row.id, now + 600, now)) return sql.claimed.get(key).message_id;
    sql.message.run(...MESSAGE.map((name) => row[name]));
    sql.delivery.run("contact", row.id, now, now);
    return row.id;
  }).immediate;
  const ask = db.transaction((row) => {
    const now = row.asked_at;
    if (!sql.subscriber.get(...SUBSCRIBER.map((name) => row[name]))) return;
    if (sql.tally.get(today(), MAILS_PER_DAY))
      sql.delivery.run("confirm", row.id, now, now);
  }).immediate;
  const count = db.transaction((page, day, visitor) => {
    const fresh = sql.visitor.get(day, visitor) ? 1 : 0;
    const sums = sql.page.get(page, fresh);
    sql.hit.run(page, day, fresh);
    return sums;
  }).immediate;

  return {
    contact(form, client, referer) {
      const text = {};
      const errors = [];
      for (const [name, most] of Object.entries(FIELDS)) {
        text[name] = textOf(form[name]);
        if (text[name].length > most) errors.push({ code: "TOO_LONG", field: name });
      }
      if (!text.message) errors.push({ code: "REQUIRED_FIELD_MISSING", field: "message" });
      if (!EMAIL.test(text.email)) errors.push({ code: "TYPE_EMAIL", field: "email" });
      if (errors.length) return sorry(...errors);
      const row = { ...rowOf(client, referer), ...text, received_at: Date.now() / 1000 };
      const key = keyed("body", client, ...Object.values(text));
      return thanks({ id: keep(row, key) });
    },
    newsletter(form, client, referer) {
      const email = textOf(form.email);
      const name = textOf(form.name);
      if (email.length > 254 || name.length > 200 || !EMAIL.test(email))
        return sorry({ code: "TYPE_EMAIL" });
      const mailbox = keyed("mailbox", email.toLowerCase());
      const asked_at = Date.now() / 1000;
      ask({ ...rowOf(client, referer), mailbox, email, name, asked_at });
      return thanks();
    },
    hit(form, client, agent) {
      const page = pageOf(form.page);
      if (page === null) return sorry({ code: "TYPE_TEXT" });
      if (CRAWLERS.test(agent))
        return [200, { page, ...totals(page), counted: false, reason: "crawler" }];
      const day = today();
      const visitor = keyed(day, page, client, agent).slice(0, 24);
      return [200, { page, ...count(page, day, visitor), counted: true }];
    },
    read(value) {
      const page = pageOf(value);
      if (page === null) return sorry({ code: "TYPE_TEXT" });
      const now = Date.now();
      const wanted = [];
      for (let n = 29; n >= 0; n--)
        wanted.push(new Date(now - n * 86400000).toISOString().slice(0, 10));
      const known = new Map(sql.days.all(page, wanted[0]).map((row) => [row.day, row]));
      const days = wanted.map((date) => {
        const { hits, visitors } = known.get(date) ?? { hits: 0, visitors: 0 };
        return { date, hits, visitors };
      });
      return [200, { page, ...totals(page), days }];
    },
    // A string is the badge, an object an error.
    badge(value) {
      const page = pageOf(value);
      if (page === null) return sorry({ code: "TYPE_TEXT" });
      const hits = totals(page).hits.toLocaleString("en-US");
      const right = 10 + 7 * hits.length;
      const values = { hits, right, width: 31 + right, middle: 31 + right / 2 };
      return [200, BADGE.replace(/\{(\w+)\}/g, (_, name) => values[name])];
    },
  };
};
