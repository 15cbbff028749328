// Express, better-sqlite3, cors and express-rate-limit, as their documentation says.
//
// express-rate-limit keeps its counts in each worker's memory: cheaper than a shared
// table, and inexact with two workers.
"use strict";
const cors = require("cors");
const express = require("express");
const { rateLimit } = require("express-rate-limit");
const work = require("./work.js");

const windows = (...seconds) =>
  seconds.map((s) =>
    rateLimit({
      windowMs: s * 1000,
      limit: work.QUOTA,
      standardHeaders: "draft-8",
      legacyHeaders: false,
      identifier: `${s}s`,
    }),
  );
const clientOf = (req) => req.ip.replace("::ffff:", "");
const answer = (res, [status, value]) => res.status(status).json(value);

work.serve(() => {
  const desk = work.open();
  const app = express();
  app.use(cors({ origin: [work.ORIGIN], exposedHeaders: work.EXPOSED }));
  app.use((req, res, next) => {
    res.set("Cache-Control", "no-store");
    next();
  });
  app.use(express.json({ limit: "64kb" }));
  app.post("/contact", ...windows(1, 60), (req, res) =>
    answer(res, desk.contact(req.body, clientOf(req), req.get("Referer"))),
  );
  app.post("/newsletter", ...windows(1, 60), (req, res) =>
    answer(res, desk.newsletter(req.body, clientOf(req), req.get("Referer"))),
  );
  app.post("/hits", ...windows(60), (req, res) =>
    answer(res, desk.hit(req.body, clientOf(req), req.get("User-Agent") ?? "")),
  );
  app.get("/hits", (req, res) => answer(res, desk.read(req.query.page)));
  app.get("/hits.svg", ...windows(60), (req, res) => {
    const [status, value] = desk.badge(req.query.page);
    if (status !== 200) return answer(res, [status, value]);
    res.type("image/svg+xml").send(value);
  });
  app.get("/health", (req, res) => res.json({ status: "ok" }));
  const server = app.listen(Number(process.env.PORT), "127.0.0.1");
  server.keepAliveTimeout = 100000;
});
