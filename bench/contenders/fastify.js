// Fastify, better-sqlite3, @fastify/cors and @fastify/rate-limit, as documented.
//
// @fastify/rate-limit keeps its counts in each worker's memory: cheaper than a shared
// table, and inexact with two workers. It takes one window for a route; the second one
// is its createRateLimit(). The bodies are checked by the work that all contenders
// share: a JSON schema would check less. Answers have no schema either.
"use strict";
const Fastify = require("fastify");
const work = require("./work.js");

const MINUTE = { config: { rateLimit: { max: work.QUOTA, timeWindow: 60000 } } };

work.serve(async () => {
  const desk = work.open();
  const app = Fastify({ bodyLimit: 64 * 1024, keepAliveTimeout: 100000 });
  await app.register(require("@fastify/cors"), {
    origin: [work.ORIGIN],
    exposedHeaders: work.EXPOSED,
    methods: ["GET", "POST"],
  });
  const limits = { global: false, enableDraftSpec: true };
  await app.register(require("@fastify/rate-limit"), limits);
  app.addHook("onRequest", async (req, reply) => {
    reply.header("Cache-Control", "no-store");
  });
  const inSecond = app.createRateLimit({ max: work.QUOTA, timeWindow: 1000 });
  const both = {
    ...MINUTE,
    preHandler: async (req, reply) => {
      const limit = await inSecond(req);
      if (limit.isExceeded)
        return reply.code(429).header("Retry-After", limit.ttlInSeconds).send({});
    },
  };
  const answer = (reply, [status, value]) => {
    if (typeof value === "string") reply.type("image/svg+xml");
    return reply.code(status).send(value);
  };
  const post = (respond) => (req, reply) =>
    answer(reply, respond(req.body, req.ip, req.headers));
  app.post("/contact", both, post(desk.contact));
  app.post("/newsletter", both, post(desk.newsletter));
  app.post("/hits", MINUTE, post(desk.hit));
  app.get("/hits", (req, reply) => answer(reply, desk.read(req.query.page)));
  app.get("/hits.svg", MINUTE, (req, reply) => answer(reply, desk.badge(req.query.page)));
  app.get("/health", (req, reply) => reply.send({ status: "ok" }));
  await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
});
