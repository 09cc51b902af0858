"""Whether the Stable Diffusion WebUI, which the handler `generate` asks, is there."""

from __future__ import annotations

from typing import Any, Final

from runner.config import Config
from runner.dialects.pixivtailor.words import refuse

USUAL_URL: Final = "http://127.0.0.1:7860"
LOOK_SECONDS: Final = 3.0


class WebUi:
    """Looks at it. `must_answer`: nothing is to be drawn while it does not."""

    def __init__(self, config: Config, *, must_answer: bool) -> None:
        handler = config.handlers.get("generate")
        self._url = str(handler.config.get("url", USUAL_URL) if handler is not None else USUAL_URL)
        self._must_answer = must_answer

    async def look(self) -> dict[str, Any]:
        """Its status. It is never ours to start or to stop."""
        is_open, responds = await self._ask()
        return {
            "status": "external" if responds else "starting" if is_open else "stopped",
            "port_open": is_open,
            "api_responding": responds,
            "process_id": None,
            "managed": False,
        }

    async def check(self) -> None:
        """Raises `HttpProblem` 503 while it does not answer and must."""
        if self._must_answer and not (await self._ask())[1]:
            raise refuse(503, f"the WebUI at {self._url} does not answer")

    async def _ask(self) -> tuple[bool, bool]:
        """Whether somebody listens there, and whether it is a WebUI with its API on."""
        import httpx2  # most runners are never asked this

        try:
            async with httpx2.AsyncClient(timeout=LOOK_SECONDS, trust_env=False) as client:
                answer = await client.get(f"{self._url.rstrip('/')}/sdapi/v1/options")
        except httpx2.ConnectError:
            return False, False
        except (httpx2.HTTPError, httpx2.InvalidURL):
            return True, False
        # One that wants a password is there, too; the handler has it.
        return True, answer.status_code in (200, 401)
