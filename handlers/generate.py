"""Have a Stable Diffusion WebUI draw images.

Each loop is one request for `batch_count` times `batch_size` images. What a loop brought is kept at once: an attempt
that follows a failure goes on with the loop that failed.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import shutil
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from runner import Context, Fail, FileState, Retry, handler
from runner.handlers.media import media_type

from ._keeping import link_or_copy
from ._settings import read_settings
from ._webui import UNAVAILABLE, WebUI, WebUISettings

SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
INTERRUPT_SECONDS = 0.7
MAX_PROMPT_BYTES = 64 << 10
USUAL_SAMPLER = "DPM++ 2M Karras"

Name = Annotated[str, Field(max_length=300)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_BYTES)]
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8)]


class Lora(BaseModel):
    """A LoRA, by the name that the WebUI knows it by, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^<>:]+$")]
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0


class GenerateSettings(WebUISettings):
    """How patient we are: seconds between two looks at the progress, between two loops, and of silence."""

    poll_seconds: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    pause_seconds: Annotated[float, Field(ge=0, le=600)] = 2.0
    silence_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0


class Image(NamedTuple):
    """One image that was drawn: where it is kept, and the seed that draws it again, if that is known."""

    path: Path
    seed: int | None


@handler(timeout=None, retries=3, backoff={"base": "15s", "max": "5m"}, concurrency=1)
async def generate(  # noqa: PLR0913 - each is a field of the form
    ctx: Context,
    prompt: Annotated[Prompt, Field(description="what to draw; empty: the text of the file that came along")] = "",
    negative_prompt: Annotated[Prompt, Field(description="what not to draw")] = "",
    steps: Annotated[int, Field(ge=1, le=150, description="sampling steps")] = 20,
    cfg_scale: Annotated[float, Field(ge=0, le=30, description="how closely the prompt is followed")] = 7.0,
    width: Annotated[Side, Field(description="in pixels, a multiple of 8")] = 512,
    height: Annotated[Side, Field(description="in pixels, a multiple of 8")] = 512,
    seed: Annotated[int, Field(ge=-1, le=2**32 - 1, description="of the first image; -1: any")] = -1,
    sampler: Annotated[Name, Field(description="empty: DPM++ 2M Karras")] = "",
    batch_size: Annotated[int, Field(ge=1, le=16, description="images that are drawn at once")] = 1,
    batch_count: Annotated[int, Field(ge=1, le=100, description="batches in one request")] = 1,
    loop_count: Annotated[int, Field(ge=1, le=100, description="requests")] = 1,
    model: Annotated[Name, Field(description="checkpoint; empty: the one that is loaded")] = "",
    vae: Annotated[Name, Field(description="empty: the WebUI's own setting")] = "",
    loras: Annotated[list[Lora], Field(max_length=20, description="LoRAs, each a name and a weight")] = [],  # noqa: B006
    clip_skip: Annotated[int, Field(ge=1, le=12, description="layers of CLIP to stop at, from the last")] = 2,
    restore_faces: Annotated[bool, Field(description="mend faces")] = False,
    tiling: Annotated[bool, Field(description="images that can be put side by side without a seam")] = False,
    enable_hr: Annotated[bool, Field(description="draw small, enlarge, and draw over it again")] = False,
    upscaler: Annotated[Name, Field(description="with enable_hr: what enlarges")] = "Latent",
    upscale_by: Annotated[float, Field(ge=1, le=4, description="with enable_hr: how many times as large")] = 2.0,
    hires_steps: Annotated[int, Field(ge=0, le=150, description="with enable_hr: 0 is as many as steps")] = 0,
    denoising_strength: Annotated[float, Field(ge=0, le=1, description="with enable_hr: what may change")] = 0.5,
    eta: Annotated[float, Field(ge=0, le=1, description="noise that some samplers add")] = 0.0,
) -> dict[str, object]:
    """Have a Stable Diffusion WebUI draw images from a prompt."""
    request = {
        "prompt": add_loras(prompt or read_prompt(ctx), loras),
        "negative_prompt": negative_prompt,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "width": width,
        "height": height,
        "sampler_name": sampler or USUAL_SAMPLER,
        "batch_size": batch_size,
        "n_iter": batch_count,
        "restore_faces": restore_faces,
        "tiling": tiling,
        "eta": eta,
        "enable_hr": enable_hr,
        "denoising_strength": denoising_strength,
        **({"hr_upscaler": upscaler, "hr_scale": upscale_by, "hr_second_pass_steps": hires_steps} if enable_hr else {}),
        "override_settings": choose_settings(model, vae, clip_skip),
        "override_settings_restore_afterwards": True,
        "send_images": True,
        "save_images": False,
    }
    settings = read_settings(ctx, GenerateSettings)
    async with WebUI(settings) as ui:
        images = await Drawing(ctx, ui, settings, loop_count).draw(request, seed)
    names = await asyncio.to_thread(publish, ctx, images)
    ctx.progress(100, f"{len(names)} images", stage="generating")
    return {"images": names, "count": len(names), "loops": loop_count, "seeds": [image.seed for image in images]}


def read_prompt(ctx: Context) -> str:
    """The text of the file that came along. Raises `Fail` if there is none, or no text in it."""
    if len(ctx.inputs) != 1:
        raise Fail(f"give a prompt, or one file that holds it, not {len(ctx.inputs)}", code="no_prompt")
    with ctx.inputs[0].open("rb") as file:
        data = file.read(MAX_PROMPT_BYTES + 1)
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Fail(f"{ctx.inputs[0].name} is not UTF-8", code="no_prompt") from None
    if not text or len(data) > MAX_PROMPT_BYTES:
        raise Fail(f"{ctx.inputs[0].name} is empty, or longer than any prompt", code="no_prompt")
    return text


def add_loras(prompt: str, loras: list[Lora]) -> str:
    """The prompt with the tags that switch LoRAs on."""
    return " ".join([prompt, *(f"<lora:{lora.name}:{lora.weight:g}>" for lora in loras)])


def choose_settings(model: str, vae: str, clip_skip: int) -> dict[str, object]:
    """Settings of the WebUI that hold for one request."""
    chosen = {"sd_model_checkpoint": model, "sd_vae": vae}
    return {"CLIP_stop_at_last_layers": clip_skip, **{key: value for key, value in chosen.items() if value}}


class Drawing:
    """All the loops of one task."""

    def __init__(self, ctx: Context, ui: WebUI, settings: GenerateSettings, loops: int) -> None:
        self._ctx = ctx
        self._ui = ui
        self._settings = settings
        self._loops = loops
        self._shown = 0.0

    async def draw(self, request: dict[str, Any], seed: int) -> list[Image]:
        """The images of all loops; those that an earlier attempt has drawn are not drawn again."""
        self._show(0, 0.0, "asking the WebUI")
        options = await self._ui.get("/sdapi/v1/options")
        model = options.get("sd_model_checkpoint") if isinstance(options, dict) else None
        self._ctx.log.info("the WebUI at %s is ready, with %s", self._ui.url, model or "no model yet")
        images: list[Image] = []
        for loop in range(self._loops):
            folder = self._ctx.kept / f"loop-{loop + 1:03}"
            if not folder.is_dir():
                await self._draw_loop(loop, folder, request | {"seed": advance(seed, len(images))})
            images += read_loop(folder)
            self._ctx.files([FileState(path=name_of(self._ctx, *pair), status="completed") for pair in number(images)])
        return images

    async def _draw_loop(self, loop: int, folder: Path, request: dict[str, Any]) -> None:
        self._show(loop, 0.0, "waiting for the WebUI")
        if loop:
            await asyncio.sleep(self._settings.pause_seconds)
        answer = await self._request(loop, request)
        drawn = await asyncio.to_thread(keep_loop, folder, answer)
        if not drawn:
            raise Fail("the WebUI sent no image that can be read", code="no_images")
        self._ctx.log.info("loop %d of %d: %d images", loop + 1, self._loops, drawn)

    async def _request(self, loop: int, request: dict[str, Any]) -> Any:
        """What the WebUI answers. It is told to stop when we are: it would go on drawing for nobody."""
        answer = asyncio.ensure_future(self._ui.post("/sdapi/v1/txt2img", request, seconds=None))
        try:
            await self._watch(loop, answer)
            return await answer
        finally:
            if not answer.done():
                await self._interrupt()
                answer.cancel()
                await asyncio.wait([answer])
            if not answer.cancelled():
                answer.exception()  # it may have failed in the same moment; asyncio wants somebody to have looked

    async def _interrupt(self) -> None:
        with contextlib.suppress(Retry, Fail):
            await self._ui.post("/sdapi/v1/interrupt", {}, seconds=INTERRUPT_SECONDS)

    async def _watch(self, loop: int, answer: "asyncio.Future[Any]") -> None:
        """Hand on how far the WebUI is, until it answers. Raises `Retry` when it is silent for too long."""
        settings, silence, now = self._settings, 0.0, asyncio.get_running_loop().time
        while not (await asyncio.wait([answer], timeout=settings.poll_seconds))[0]:
            asked = now()
            try:
                self._hear(loop, await self._ui.get("/sdapi/v1/progress?skip_current_image=true"))
                silence = 0.0
            except (Retry, Fail) as error:
                silence += now() - asked + settings.poll_seconds
                if silence >= settings.silence_seconds and not answer.done():
                    raise Retry(message=f"the WebUI does not tell its progress: {error}", code=UNAVAILABLE) from error

    def _hear(self, loop: int, said: Any) -> None:
        share, state = (said.get("progress"), said.get("state")) if isinstance(said, dict) else (None, None)
        if not isinstance(share, int | float) or not isinstance(state, dict):
            return
        text = f"step {state.get('sampling_step', 0)} of {state.get('sampling_steps', 0)}"
        left = said.get("eta_relative")
        if isinstance(left, int | float) and left > 0:
            text += f", about {left:.0f} s left"
        self._show(loop, min(max(share, 0.0), 1.0), text)

    def _show(self, loop: int, share: float, text: str) -> None:
        # The WebUI begins anew for each pass, and may be busy with somebody else's image: a bar only moves forward.
        self._shown = max(self._shown, 99 * (loop + share) / self._loops)
        self._ctx.progress(self._shown, f"loop {loop + 1} of {self._loops}: {text}", stage="generating")


def advance(seed: int, drawn: int) -> int:
    """The seed for what comes after so many images; without that each loop would draw the same."""
    return seed if seed < 0 else (seed + drawn) % 2**32


def keep_loop(folder: Path, answer: Any) -> int:
    """Write the images of one answer, and their seeds, to a folder that appears when all are there; how many."""
    answer = answer if isinstance(answer, dict) else {}
    info = read_info(answer.get("info"))
    first = info.get("index_of_first_image") or 0  # before it lies a grid of all
    images = answer.get("images")
    sent = images[first if isinstance(first, int) else 0 :] if isinstance(images, list) else []
    partial = folder.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    decoded = [image for image in map(decode_image, sent) if image]
    for position, (suffix, data) in enumerate(decoded, start=1):
        partial.joinpath(f"{position:03}.{suffix}").write_bytes(data)
    partial.joinpath("seeds.json").write_text(json.dumps(info.get("all_seeds") or []))
    if decoded:
        partial.rename(folder)
    return len(decoded)


def read_info(text: Any) -> dict[str, Any]:
    """What the WebUI says about the images beside them; a document in a text."""
    try:
        info = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def decode_image(text: Any) -> tuple[str, bytes] | None:
    """The suffix and the bytes of an image in base64, with or without `data:…,` before it; None if it is none."""
    try:
        data = base64.b64decode(str(text).rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        return None
    suffix = SUFFIXES.get(media_type("", data))
    return (suffix, data) if suffix else None


def read_loop(folder: Path) -> list[Image]:
    """The images that one loop kept, in their order."""
    seeds = json.loads(folder.joinpath("seeds.json").read_bytes())
    paths = sorted(path for path in folder.iterdir() if path.name != "seeds.json")
    return [Image(path, seeds[place] if place < len(seeds) else None) for place, path in enumerate(paths)]


def number(images: list[Image]) -> list[tuple[int, Image]]:
    """The images with their numbers, from 1."""
    return list(enumerate(images, start=1))


def name_of(ctx: Context, place: int, image: Image) -> str:
    """What the output is called."""
    return f"generated_{ctx.task.id}_{place:03}{image.path.suffix}"


def publish(ctx: Context, images: list[Image]) -> list[str]:
    """Make outputs of what was kept; it stays, should this attempt be lost before its end is recorded."""
    names = [name_of(ctx, *pair) for pair in number(images)]
    for name, image in zip(names, images, strict=True):
        link_or_copy(image.path, ctx.output(name))
    return names
