"""A comparison as a Markdown page with plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path

from benchmarks.compare import RAW, Result, failures
from benchmarks.report import spread
from llamafast.bench.figures import Goal, ServedRun, median

Measure = Callable[[ServedRun], float | None]
OURS = "llamafast"
PLOTS: dict[str, tuple[str, str, Measure]] = {
    "throughput.png": ("output tokens per second", "tok/s", lambda run: run.output_rate),
    "ttft.png": ("time to first token, median", "ms", lambda run: 1000 * run.ttft_p50),
    "itl.png": ("inter-token latency, p99", "ms", lambda run: 1000 * run.itl_p99),
}


def ratios(result: Result, other: str, measure: Measure) -> list[float]:
    """llamafast's value over the other server's, pair by pair; a pair without both has none."""
    pairs = zip(result.served[OURS], result.served[other], strict=True)
    values = [(measure(ours), measure(theirs)) for ours, theirs in pairs]
    return [mine / his for mine, his in values if mine and his and isfinite(mine) and isfinite(his)]


def table(result: Result) -> list[str]:
    header = [
        "server",
        "tok/s",
        "÷ raw",
        "TTFT ms p50/p99",
        "TPOT ms p50",
        "ITL ms p50/p99",
        "E2EL ms p50/p99",
        "req/s",
        "good/s",
        "CPU s/1k",
        "peak MB",
        "events/token",
        "cached",
        "left",
        "failed",
    ]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    if result.raw_rates:
        lines.append(f"| {RAW} | {spread(result.raw_rates, ',.0f')} | 1 |" + " |" * (len(header) - 3))
    for name, runs in result.served.items():
        cpu = [run.server_cpu_per_1000 for run in runs if run.server_cpu_per_1000 is not None]
        peak = result.peak_bytes[name]
        efficiency = [run.output_rate / raw for run, raw in zip(runs, result.raw_rates, strict=False)]
        cells = [
            name,
            spread([run.output_rate for run in runs], ",.0f"),
            f"{median(efficiency):.2f}" if efficiency else "",
            both(runs, lambda run: run.ttft_p50, lambda run: run.ttft_p99),
            f"{1000 * middle(runs, lambda r: r.tpot_p50):.2f}",
            both(runs, lambda run: run.itl_p50, lambda run: run.itl_p99),
            both(runs, lambda run: run.e2el_p50, lambda run: run.e2el_p99),
            f"{middle(runs, lambda r: r.request_rate):.2f}",
            f"{middle(runs, lambda r: r.goodput or 0):.2f}",
            f"{median(cpu):.3f}" if cpu else "",
            f"{peak / 1e6:,.0f}" if peak else "",
            f"{sum(run.text_events for run in runs) / max(1, sum(run.tokens for run in runs)):.2f}",
            str(sum(run.cached_tokens for run in runs)),
            str(sum(run.left for run in runs)),
            str(sum(len(run.failures) for run in runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def middle(runs: Sequence[ServedRun], measure: Measure) -> float:
    """The median over runs; nan where a run has no value."""
    return median(value if (value := measure(run)) is not None else float("nan") for run in runs)


def both(runs: Sequence[ServedRun], p50: Measure, p99: Measure) -> str:
    return f"{1000 * middle(runs, p50):.1f}/{1000 * middle(runs, p99):.1f}"


def summary(results: Sequence[Result]) -> list[str]:
    """llamafast over each other server: tokens per second, and time to first token."""
    others = [name for name in results[0].served if name != OURS] if results else []
    if not others or OURS not in results[0].served:
        return []
    header = ["scenario", *(f"tok/s ÷ {name}" for name in others), *(f"TTFT ÷ {name}" for name in others)]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for result in results:
        cells = [
            spread(found, ".2f") if (found := ratios(result, name, measure)) else "-"
            for measure in (lambda run: run.output_rate, lambda run: run.ttft_p50)
            for name in others
        ]
        lines.append(f"| {result.scenario} | {' | '.join(cells)} |")
    return lines


def page(results: Sequence[Result], about: Mapping[str, object], goal: Goal, plots: Sequence[str]) -> str:
    lines = ["# Comparison", "", *(f"* {key}: {value}" for key, value in about.items()), ""]
    lines += [
        "Medians over the runs, the range in parentheses. The definitions are in `llamafast/bench/figures.py`; good/s "
        f"are answers per second with TTFT within {1000 * goal.ttft:g} ms and TPOT within {1000 * goal.tpot:g} ms.",
        "",
    ]
    lines += ["## Ratios", "", *summary(results), ""]
    lines += [f"![{name}]({name})" for name in plots]
    for result in results:
        lines += ["", f"## {result.scenario}", "", result.about, "", *table(result)]
    failed = failures(results)
    if failed:
        lines += ["", "## Failures", ""]
    for (scenario, name), reasons in failed.items():
        lines += [f"* {scenario}, {name}: {len(reasons)} times {' '.join(reasons[0].split())[:300]}"]
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], folder: Path) -> list[str]:
    """A bar chart per entry of ``PLOTS`` that has a value, on a logarithmic axis; the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for file, (title, unit, measure) in PLOTS.items():
        if not any(isfinite(middle(runs, measure)) for result in results for runs in result.served.values()):
            continue
        names = list(results[0].served)
        height = 1.5 + 0.13 * len(results) * (len(names) + 0.5)
        figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
        for place, name in enumerate(names):
            at = [row + (place - (len(names) - 1) / 2) * 0.8 / len(names) for row in range(len(results))]
            values = [middle(result.served[name], measure) for result in results]
            axes.barh(at, values, height=0.8 / len(names), label=name)
        axes.set_yticks(range(len(results)), [result.scenario for result in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_xlabel(f"{title}, {unit}")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.45 / height), ncols=len(names), frameon=False)
        figure.savefig(folder / file, dpi=120)
        pyplot.close(figure)
        drawn.append(file)
    return drawn
