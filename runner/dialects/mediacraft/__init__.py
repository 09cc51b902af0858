"""MediaCraft: a web page and its API for removing watermarks from films and for joining them.

__init__ ── make: the parts, put together
words       its answers, its records of tasks, what its clients say (pure)
visitors    its users, by cookie      accounts   names and passwords
studio      its verbs in ours         pictures   frames and thumbnails
tasks  people  files  video           the endpoints; `video` are those of the time before users
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from runner.dialects.dialect import Dialect
from runner.dialects.mediacraft import words
from runner.dialects.mediacraft.accounts import Accounts
from runner.dialects.mediacraft.files import FileEndpoints
from runner.dialects.mediacraft.legacy import tell_legacy
from runner.dialects.mediacraft.people import PeopleEndpoints
from runner.dialects.mediacraft.pictures import Pictures
from runner.dialects.mediacraft.studio import Studio
from runner.dialects.mediacraft.tasks import TaskEndpoints
from runner.dialects.mediacraft.video import MergeEndpoints, VideoEndpoints
from runner.dialects.mediacraft.visitors import LEGACY_PREFIX, Visitors
from runner.web.app import Site
from runner.web.keys import Signer, read_keys
from runner.web.problems import Fault
from runner.web.routing import route

NAME: Final = "mediacraft"
PREFIXES: Final = (
    "/api/user/",
    "/api/session/",
    "/api/tasks/",
    "/api/video/",
    "/api/files/",
    "/api/system/",
)


def make(site: Site) -> Dialect:
    """The dialect, over what all listeners share."""
    service, section = site.service, site.config.dialects.mediacraft
    layout = service.store.layout
    signer = Signer(read_keys(service.store.files, f"{layout.data}/secret.key"))
    visitors = Visitors(signer, site.users, shared=site.config.auth.mode == "cookie")
    studio = Studio(service, site.config, rejects=section.on_limit == "reject")
    pictures = Pictures(site.config, Path(layout.data))
    accounts = Accounts(service.store.files, f"{layout.data}/accounts")
    people = PeopleEndpoints(service, site.users, accounts)
    return Dialect(
        name=NAME,
        routes=(
            *TaskEndpoints(service, studio, pictures, site.space).routes,
            *people.routes,
            *FileEndpoints(service, studio, site.space, site.config).routes,
            *VideoEndpoints(service, studio, pictures, site.space).routes,
            *MergeEndpoints(service, studio, pictures, site.space).routes,
        ),
        own_routes=(route("/", GET=_banner), route("/health", GET=people.health)),
        prefixes=PREFIXES,
        envelope=tell,
        auth=visitors,
        origins=frozenset(section.origins),
    )


def tell(request: Request, fault: Fault) -> Response:
    """A fault in the words of the path that was asked for."""
    if request.url.path.startswith(LEGACY_PREFIX):
        return tell_legacy(request, fault)
    return words.tell(request, fault)


async def _banner(request: Request) -> Response:
    """`/`: says who is here, and gives the cookies."""
    return words.answer(request, {"name": "MediaCraft API", "version": "v1"}, flat={"status": "running"})
