"""The routes of the server: OpenAI's speech API, voices made of clips, packs, and the page."""

import asyncio
import logging
import re
from collections.abc import Coroutine
from functools import partial
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from nuanced_core.serving.errors import ApiError, error_body
from nuanced_core.serving.guard import Access, Guard
from nuanced_core.serving.sound_formats import SOUND_FORMATS, encode_sound
from nuanced_core.serving.studio import MadeVoice, Studio, Upload
from nuanced_core.serving.work import Deadline, Limits, WorkQueue
from nuanced_core.speech.packs import PackFormat, pack_bytes
from nuanced_core.speech.speaking import FASTEST, SLOWEST

__all__ = ["make_app"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Names that clients of OpenAI's API send unless they are told otherwise; there is one model behind all of them.
_ALIASES = ("kokoro", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
_PACK_FORMATS = ("pt", "npz", "bin")
_PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")} | {
    f"/{name}": (name, "text/javascript") for name in ("page.js", "sound.js")
}


class _VoiceObject(BaseModel):
    id: Annotated[str, Field(max_length=400)]


class _SpeechRequest(BaseModel):
    """The body of POST /v1/audio/speech."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=200)]
    input: Annotated[str, Field(min_length=1)]
    voice: Annotated[str, Field(max_length=400)] | _VoiceObject
    speed: Annotated[float, Field(ge=SLOWEST, le=FASTEST, allow_inf_nan=False)] = 1.0
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    stream_format: Literal["audio"] = "audio"


def make_app(studio: Studio, access: Access, limits: Limits, model: str) -> Starlette:
    """Return the ASGI application.

    Args:
        model: name of the encoder, the id of the only model.
    """
    return Starlette(
        routes=_Routes(studio, limits, model).table(),
        middleware=[Middleware(Guard, access=access, limits=limits)],
        exception_handlers={
            ApiError: _answer_error,
            HTTPException: _answer_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_bug,
        },
    )


class _Routes:
    def __init__(self, studio: Studio, limits: Limits, model: str) -> None:
        self._studio, self._limits, self._model = studio, limits, model
        self._queue = WorkQueue(limits)

    def table(self) -> list[Route]:
        page = [Route(path, partial(_page_file, *file), methods=["GET"]) for path, file in _PAGE.items()]
        return [
            *page,
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/audio/speech", self.speech, methods=["POST"]),
            Route("/v1/voices", self.voices, methods=["GET"]),
            Route("/v1/voices", self.new_voice, methods=["POST"]),
            Route("/v1/voices/{name}", self.forget, methods=["DELETE"]),
            Route("/v1/packs", self.pack, methods=["GET"]),
        ]

    async def models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "nuanced-speech"} for name in self._names]
        return JSONResponse({"object": "list", "data": data})

    @property
    def _names(self) -> tuple[str, ...]:
        return (self._model, *(name for name in _ALIASES if name != self._model))

    async def voices(self, request: Request) -> Response:
        made = [_voice(voice) for voice in self._studio.made_voices]
        stock = [{"id": name, "object": "voice", "name": name, "kind": "stock"} for name in self._studio.stock_voices]
        return JSONResponse({"object": "list", "data": [*made, *stock]})

    async def speech(self, request: Request) -> Response:
        asked = await self._speech_request(request)
        voice = asked.voice if isinstance(asked.voice, str) else asked.voice.id
        pack = self._studio.pack(voice)

        kind = asked.response_format
        if kind == "pcm":
            stream = self._queue.stream(
                lambda deadline: (
                    encode_sound(piece, kind) for piece in self._studio.say(asked.input, pack, asked.speed, deadline)
                )
            )
            chunks = await _while_connected(request, stream)
            return _SoundStream(chunks, media_type=SOUND_FORMATS[kind].media_type)

        def work(deadline: Deadline) -> bytes:
            pieces = [*self._studio.say(asked.input, pack, asked.speed, deadline)]
            return encode_sound(torch.cat(pieces), kind)

        sound = await _while_connected(request, self._queue.run(work))
        return Response(sound, media_type=SOUND_FORMATS[kind].media_type)

    async def _speech_request(self, request: Request) -> _SpeechRequest:
        # A form elsewhere can send other types without asking this server first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send JSON, with the header 'Content-Type: application/json'", "unsupported_media_type")
        try:
            asked = _SpeechRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise _invalid(error) from None
        if len(asked.input) > self._limits.text_characters:
            message = f"input: {len(asked.input)} characters are more than {self._limits.text_characters}; send parts"
            raise ApiError(400, message, "string_above_max_length", "input")
        if asked.model not in self._names:
            message = f"model {asked.model!r} is not served; choose from {', '.join(self._names)}"
            raise ApiError(404, message, "model_not_found", "model")
        return asked

    async def new_voice(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise ApiError(415, "send the clips as multipart/form-data, in fields 'files'", "unsupported_media_type")
        limits = self._limits
        try:
            async with request.form(max_files=limits.clips, max_fields=4) as form:
                sent = [item for key in ("files", "file") for item in form.getlist(key)]
                files = [item for item in sent if isinstance(item, UploadFile)]
                uploads = [Upload(_client_name(file.filename, n), await file.read()) for n, file in enumerate(files)]
                name = form.get("name")
        except (MultiPartException, HTTPException) as error:
            reason = getattr(error, "detail", None) or getattr(error, "message", "")
            raise ApiError(400, f"the form cannot be read: {reason}", "invalid_form") from None
        if not uploads or len(files) != len(sent):
            raise ApiError(400, "files: send at least one sound file", "missing_file", "files")
        name = name.strip() if isinstance(name, str) and name.strip() else None
        self._studio.check_name(name)
        work = self._queue.run(lambda deadline: self._studio.make_voice(uploads, name, deadline))
        made = await _while_connected(request, work)
        return JSONResponse(_voice(made), 201)

    async def forget(self, request: Request) -> Response:
        self._studio.forget(request.path_params["name"])
        return Response(status_code=204)

    async def pack(self, request: Request) -> Response:
        voice, kind = request.query_params.get("voice", ""), request.query_params.get("format", "pt")
        if kind not in _PACK_FORMATS:
            message = f"format {kind[:20]!r}: choose from {', '.join(_PACK_FORMATS)}"
            raise ApiError(400, message, "invalid_format", "format")
        pack = self._studio.pack(voice)
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", voice).strip("_")
        content = pack_bytes(pack, cast("PackFormat", kind), name)
        headers = {"Content-Disposition": f'attachment; filename="{name[:100]}.{kind}"'}  # file systems allow 255
        return Response(content, media_type="application/octet-stream", headers=headers)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what work returns; cancel it when the client leaves. The body of the request must have been read.

    Raises:
        ClientDisconnect: the client has left.
    """

    async def disconnection() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, left = asyncio.create_task(work), asyncio.create_task(disconnection())
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        left.cancel()
        await asyncio.gather(working, left, return_exceptions=True)  # what they raise is seen


class _SoundStream(StreamingResponse):
    """Sound as it is spoken. What goes wrong is logged in a line, and breaks the connection: its answer has begun."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except ApiError as error:
            logger.warning("a stream of speech was broken off: %s", error)


def _voice(made: MadeVoice) -> dict[str, Any]:
    return {
        "id": made.name,
        "object": "voice",
        "name": made.name,
        "kind": "made",
        "created_at": made.created,
        "nearest": made.nearest,
        "similarity": round(made.similarity, 3),
        "notes": [*made.notes],
    }


def _client_name(name: str | None, number: int) -> str:
    """Return a client's name of a file for messages, without folders and control characters."""
    last = re.split(r"[/\\]", name or "")[-1]
    return "".join(c for c in last if c.isprintable())[:80] or f"clip {number + 1}"


def _invalid(error: ValidationError) -> ApiError:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"] if part not in ("_VoiceObject", "str"))
    given = problem["input"]
    shown = f" (not {given!r})" if isinstance(given, str | int | float) and len(str(given)) <= 40 else ""
    message = f"{place or 'body'}: {problem['msg'][:1].lower()}{problem['msg'][1:]}{shown}"
    return ApiError(400, message, "invalid_value", place or None)


async def _page_file(name: str, media_type: str, request: Request) -> Response:
    content = (resources.files("nuanced_core.serving") / "page" / name).read_bytes()
    return Response(content, media_type=media_type)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        error = ApiError(error.status_code, message, "not_found", headers=error.headers)
    assert isinstance(error, ApiError)
    return JSONResponse(error_body(error), error.status, error.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Answer a client that has left, which nobody receives."""
    return Response(status_code=400)


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Answer without what an error says, which may name files; the server logs it."""
    message = "the server failed; its log says why"
    return JSONResponse(error_body(ApiError(500, message, "internal_error")), 500)
