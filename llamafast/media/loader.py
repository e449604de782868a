"""What clients send as media → their bytes, and how these stand in a prompt."""

from __future__ import annotations

import asyncio
import concurrent.futures
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from llamafast.config import MtmdConfig
from llamafast.engine.media import MediaRows, MediaSource, Medium
from llamafast.errors import EngineFailure, InvalidMedia
from llamafast.media.anonymous_file import AnonymousFile, mapped
from llamafast.media.data_url import read_base64, read_data_url
from llamafast.media.encoder import Source
from llamafast.media.fetch import MediaFetcher
from llamafast.media.limits import FetchedBytes, FetchedItem, byte_limit
from llamafast.media.process import MediaProcess
from llamafast.media.row_files import LAYOUT, RowFiles
from llamafast.media.sound_pieces import CutSamples
from llamafast.media.wire import Chunk

T = TypeVar("T")

# Of what a digest is made, in which order: with another number here nothing that was kept is found any more.
_RECIPE = b"1"
# Bytes of layouts that are remembered, beside some hundred that each takes; most have tens, a long video has a million.
_REMEMBERED_BYTES, _LAYOUT_BYTES = 2**25, 500
# Layouts that are asked for at once: no more than the socket has room for.
_LAID_OUT_AT_ONCE = 64
_LAYOUT = msgspec.msgpack.Decoder(list[Chunk])

Chunks: TypeAlias = "tuple[array[int] | MediaRows, ...]"


class _Here(NamedTuple):
    """The bytes of a medium that is here, and what they count as."""

    file: AnonymousFile
    item: FetchedItem


class _Piece(NamedTuple):
    """One of a sound that was cut; a file of its own once it is wanted."""

    samples: CutSamples
    number: int
    item: FetchedItem


class Loader:
    """A ``MediaLoader``: for requests on one event loop."""

    def __init__(
        self,
        config: MtmdConfig,
        process: MediaProcess,
        fingerprint: str,
        files: RowFiles | None = None,
        projectors: tuple[str, ...] = (),
    ) -> None:
        self.projectors = projectors
        self._config = config
        self._files = files
        self._process = process
        self._fetcher = MediaFetcher(config)
        self._fetched = FetchedBytes(config.fetched_most)
        self._fingerprint = fingerprint.encode()
        self._at_once = asyncio.Semaphore(_LAID_OUT_AT_ONCE)
        self._layouts: OrderedDict[tuple[bytes, bytes], Chunks] = OrderedDict()
        self._layout_bytes = 0

    async def load(self, sources: Sequence[MediaSource], salt: str = "") -> list[Medium]:
        """All at once, within ``load_max_seconds``. Raises InvalidMedia with the path of the first one at fault, or
        QueueFull."""
        if len(sources) > self._config.max_media:
            raise InvalidMedia(
                f"a request has at most {self._config.max_media} media (model.mtmd.max_media)",
                param=sources[self._config.max_media].path,
            )
        loads = [asyncio.ensure_future(self._named(source, salt.encode())) for source in sources]
        try:
            async with asyncio.timeout(self._config.load_max_seconds):
                return [await load for load in loads]
        except TimeoutError:
            late = next((i for i, load in enumerate(loads) if not load.done() or load.cancelled()), 0)
            raise self._too_late(sources[late]) from None
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)

    async def cut(self, sound: MediaSource, most_seconds: float) -> list[MediaSource]:
        try:
            async with asyncio.timeout(self._config.load_max_seconds):
                return await self._cut(sound, most_seconds)
        except TimeoutError:
            raise self._too_late(sound) from None
        except InvalidMedia as error:
            error.param = sound.path
            raise

    async def _cut(self, sound: MediaSource, most_seconds: float) -> list[MediaSource]:
        byte_limit(sound.kind, self._config).check(len(sound.data))
        if not len(sound.data):
            raise InvalidMedia(f"the {sound.kind} is empty")
        # the request's body may be forgotten meanwhile
        item = FetchedItem(self._fetched)
        item.grow(len(sound.data))
        try:
            file = await asyncio.to_thread(AnonymousFile.of, sound.data)
            samples = await self._answered(lambda: self._process.cut(file, most_seconds))
            if samples is None:
                return [replace(sound, data=_Here(file, item))]
            if not samples.is_whole:
                raise EngineFailure("pieces of this audio are missing")
            if len(samples.pcm16) > self._config.fetched_most:
                told = f"this audio takes {len(samples.pcm16)} bytes once it is read"
                raise InvalidMedia(f"{told}; model.mtmd.fetched_max_bytes is {self._config.fetched_most}")
            item.grow(len(samples.pcm16))
            return [replace(sound, data=_Piece(samples, i, item)) for i in range(len(samples.ends))]
        except BaseException:
            item.grow(0)  # whoever keeps the error keeps what led to it
            raise

    async def _answered(self, ask: Callable[[], concurrent.futures.Future[T]]) -> T:
        """What the process says. Where who asks leaves before, it is told to drop this, and there is room for another
        one once it has: clients that come and go may be many, and nobody waits for a socket that is full."""
        await self._at_once.acquire()
        asked = ask()
        answer = asyncio.wrap_future(asked)
        answer.add_done_callback(lambda _: self._at_once.release())
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._process.drop(asked)
            raise

    def _too_late(self, source: MediaSource) -> InvalidMedia:
        seconds = self._config.load_max_seconds
        told = f"the media of a request have to be there within {seconds:g} s (model.mtmd.load_max_seconds)"
        return InvalidMedia(told, param=source.path)

    async def _named(self, source: MediaSource, salt: bytes) -> Medium:
        try:
            return await self._load(source, salt)
        except InvalidMedia as error:
            error.param = source.path
            raise

    async def _load(self, source: MediaSource, salt: bytes) -> Medium:
        limit = byte_limit(source.kind, self._config)
        item = FetchedItem(self._fetched)  # what comes with a request counts with its body
        data: bytes | bytearray | memoryview
        here: AnonymousFile | None = None
        if isinstance(source.data, _Here):
            here, item = source.data
            data = mapped(here.descriptor)
        elif isinstance(source.data, _Piece):
            samples, number, item = source.data
            data = samples.wav(number)
        elif not source.is_url:
            data = await asyncio.to_thread(read_base64, source.text, limit)
        elif source.text[:5].lower() == "data:":
            data = (await asyncio.to_thread(read_data_url, source.text, limit)).data
        else:
            data = await self._fetcher.fetch(source.text, limit, item)
        if not data:
            raise InvalidMedia(f"the {source.kind} is empty")
        file, digest = await asyncio.to_thread(self._kept, data, source, here)
        chunks = self._layouts.get((salt, digest))
        if chunks is None:
            chunks = tuple(map(_chunk, await self._laid_out(file, salt, digest, source)))
            self._remember((salt, digest), chunks)
        held = Source(file, source.low_detail, item)
        return Medium(kind=source.kind, digest=digest, chunks=chunks, source=held, path=source.path)

    def _remember(self, key: tuple[bytes, bytes], chunks: Chunks) -> None:
        """The newest ones."""
        if key not in self._layouts:  # or another request was faster
            self._layouts[key] = chunks
            self._layout_bytes += _size(chunks)
        while self._layout_bytes > _REMEMBERED_BYTES:
            self._layout_bytes -= _size(self._layouts.popitem(last=False)[1])

    async def _laid_out(self, file: AnonymousFile, salt: bytes, digest: bytes, source: MediaSource) -> list[Chunk]:
        """Of a picture's header, which takes nothing; what takes a while is kept on disk too."""
        files = self._files if source.kind != "image" else None
        if files is not None and (kept := await asyncio.to_thread(files.read, salt, digest, LAYOUT)) is not None:
            with suppress(msgspec.DecodeError):
                return _LAYOUT.decode(kept)
        laid_out = await self._answered(lambda: self._process.lay_out(file, source.kind, source.low_detail))
        if files is not None:
            await asyncio.to_thread(files.write, salt, digest, LAYOUT, msgspec.msgpack.encode(laid_out))
        return laid_out

    def _kept(
        self, data: bytes | bytearray | memoryview, source: MediaSource, here: AnonymousFile | None
    ) -> tuple[AnonymousFile, bytes]:
        """The file of a medium, which there may be already, and its digest."""
        digest = sha256()
        for field in (_RECIPE, self._fingerprint, source.kind.encode(), b"low" if source.low_detail else b"", data):
            digest.update(len(field).to_bytes(8, "little"))
            digest.update(field)
        return here or AnonymousFile.of(data), digest.digest()


def _size(chunks: Chunks) -> int:
    """In bytes, about."""
    return _LAYOUT_BYTES + sum(len(c.offsets) if isinstance(c, MediaRows) else c.itemsize * len(c) for c in chunks)


def _chunk(chunk: Chunk) -> array[int] | MediaRows:
    if chunk.tokens is None:
        return MediaRows(chunk.n_rows, chunk.n_positions, chunk.causal, chunk.offsets)
    tokens = array("i")
    tokens.frombytes(chunk.tokens)
    return tokens
