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

work.serve(() => {
  const desk = work.open();
  const app = express();
  app.use(cors({ origin: [work.ORIGIN], exposedHeaders: work.EXPOSED }));
  app.use((req, res, next) => {
    res.set("Cache-Control", "no-store");
    next();
  });
  app.use(express.json({ limit: "64kb" }));
  const answer = (res, [status, value]) => {
    if (typeof value === "string") res.type("image/svg+xml").send(value);
    else res.status(status).json(value);
  };
  const post = (respond) => (req, res) =>
    answer(res, respond(req.body, req.ip.replace("::ffff:", ""), req.headers));
  app.post("/contact", ...windows(1, 60), post(desk.contact));
  app.post("/newsletter", ...windows(1, 60), post(desk.newsletter));
  app.post("/hits", ...windows(60), post(desk.hit));
  app.get("/hits", (req, res) => answer(res, desk.read(req.query.page)));
  app.get("/hits.svg", ...windows(60), (req, res) =>
    answer(res, desk.badge(req.query.page)),
  );
  app.get("/health", (req, res) => res.json({ status: "ok" }));
  app.listen(Number(process.env.PORT), "127.0.0.1").keepAliveTimeout = 100000;
});
