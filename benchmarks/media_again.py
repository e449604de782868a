"""A picture and a clip again: at once, and behind a restart with ``embedding_cache`` and ``disk_cache``.

    python -m benchmarks.media_again [--rounds N] [--model smollm2] [--threads N]

Behind a restart what the model has read of them comes from disk, and no row is needed. Needs ffmpeg on the PATH. Every
figure is a ratio to the first time within one round.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.media import PROJECTOR, SETTINGS, answered, chat, first_token, looks, picture
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import resolve_model
from llamafast.bench.ask import Ask
from recipes import tiny_mmproj

CLIP_SECONDS = 3
TIMES = ("first", "again", "restarted")


def clip(folder: Path, seed: int) -> str:
    """A data URL of three seconds of moving shapes, in colours of ``seed``."""
    path = folder / f"{seed}.mp4"
    source = f"testsrc=size=320x240:rate=8:duration={CLIP_SECONDS}"
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "lavfi", "-i", source, "-vf", f"hue=h={20 * seed}"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def watches(url: str) -> Ask:
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What happens?"}]
    return chat(content, 4)


def caching(model: str, threads: int, projector: Path, folder: Path) -> Callable[[int], dict[str, object]]:
    cache = {"path": str(folder), "max_bytes": 2**30}
    section = {
        "path": model, "alias": "benchmark", "threads": threads, **SETTINGS,
        "mtmd": {"mmproj_path": str(projector), "embedding_cache": cache},
    }  # fmt: skip
    disk = {"path": str(folder.with_name("disk")), "max_bytes": 2**30}
    return lambda port: {"server": {"port": port}, "model": section, "disk_cache": disk}


def seconds(server: Server, ask: Ask) -> float:
    (exchange,) = answered(server, [ask])
    return first_token(exchange)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.media_again", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model, _ = resolve_model(options.model)
    projector = tiny_mmproj.build(PROJECTOR)
    print(conditions())
    rounds: dict[str, list[dict[str, float]]] = {"picture": [], "clip": []}
    for round_ in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            asks = {"picture": looks(picture((640, 480), round_)), "clip": watches(clip(Path(name), round_))}
            found: dict[str, dict[str, float]] = {what: {} for what in asks}
            config = caching(str(model), options.threads, projector, Path(name) / "rows")
            for times in (TIMES[:2], TIMES[2:]):
                with serving(config, None) as server:
                    seconds(server, chat("Good morning!", 4))
                    for what, ask in asks.items():
                        found[what] |= {time: seconds(server, ask) for time in times}
        for what, one in found.items():
            rounds[what].append(one)
    print_table(list(rows(rounds)))


def rows(rounds: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, str]]:
    for what, found in rounds.items():
        for time in TIMES:
            yield {"what": f"{what}: {time}, s", "median": spread([one[time] for one in found], ".4f")}
        for time in TIMES[1:]:
            ratio = [one[time] / one["first"] for one in found]
            yield {"what": f"{what}: {time} ÷ first", "median": spread(ratio, ".3f")}


if __name__ == "__main__":
    main()
