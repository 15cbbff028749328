"""An empty Falcon application, for the cold start only."""

import falcon


class Health:
    def on_get(self, req, resp):
        resp.media = {"status": "ok"}


app = falcon.App()
app.add_route("/health", Health())
