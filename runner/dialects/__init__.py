"""Dialects: front ends that speak the contracts of other systems, so that their clients need at most another address.

A dialect is a thin translation between another system's words and the verbs of the service. It keeps nothing of its
own: a task made through one is there for every other, for the command line and for the API.

    web ── Site: what listeners share     dialect ── Dialect: what one module says of itself
             ▲                                ▲
             └── embedder, taskflow, …  ──────┘   each: make(site) -> Dialect
                        ▲
                    listeners ── which are enabled, which ports they have, whose request is whose

To add one: a module with `make(site: Site) -> Dialect`, a line in `listeners.MAKERS`, a section in
`config.DialectsConfig`, and a table of requests and answers in `tests/contract/`.

    def make(site: Site) -> Dialect:
        endpoints = WeatherEndpoints(site.service)
        return Dialect(
            name="weather",
            routes=(route("/weather/today", GET=endpoints.today),),     # runner.web.routing.route
            own_routes=(route("/health", GET=endpoints.health),),       # on its own port only
            prefixes=("/weather/",),                                    # whatever else is below is not found by us
            envelope=tell,                                              # (Request, Fault) -> Response
        )

An endpoint raises, as those of the API do: anything of `runner.errors`, pydantic's `ValidationError`, or `HttpProblem`
with a status and code of its own. All of it, a defect too, becomes a `Fault` with the status and code that the API
would answer, and `envelope` says it in the dialect's words, under another status where the contract wants one. So are
refused whom the door does not let in (foreign host, cross-site, too many requests, no token), 404 below `prefixes`, and
405 on a path of the dialect's.

The door is the API's: `caller_of(request)` says who asks, and `caller.sees` goes into every verb. `auth` is for a
dialect whose users are known by something else (`runner.web.door.Auth`); `origins`, from its section, are other
origins whose pages may ask with cookies (CORS, preflight and all). Bodies are read with `runner.web.bodies` and
`runner.web.multipart`, files come in to `site.space`, tasks are submitted by `site.submitter`; the service's verbs
block and are called by `runner.web.crossing.in_thread`.

What is not HTTP, or goes on beside it, is a companion: `start` and `stop` in the event loop that serves HTTP.

On the main port the API's own paths come first, then those of all dialects, fixed paths before `{id}`; for a path that
two dialects have, the method decides. On a port of its own a dialect is alone, with `own_routes` first.
"""
