"""What the model's benchmark found: a table, a report of one case, and a picture of the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import machine_text

from hiera_video.models.published import ARCHITECTURES


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, a row for each contender of each case."""
    header = (
        "task, model, input, precision, batch",
        "",
        "clips/s",
        "GFLOP/s",
        "times floor",
        "MiB a step",
        "speed over",
    )
    lines = [f"| {' | '.join(header)} |", "|" + "-|" * len(header)]
    for result in results:
        case = result["case"]
        size = "x".join(map(str, case["size"]))
        what = f"{case['task']}, {case['model']}, {size}, {case['precision']}, {case['batch_size']}"
        isa = result["machine"].get("onednn_at_most") if "machine" in result else None
        what += f", oneDNN at most {isa}" if isa else ""
        for name, row in result["rows"].items():
            ratios = {peer: ratio["median"] for peer, ratio in row["speed_over"].items() if peer != name}
            over = ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in ratios.items())
            used = f"{row['memory']['step']:.0f}" if row["memory"] else ""
            floor = f"{row['times_floor']:.2f}" if row["times_floor"] else ""
            figures = f"{row['clips_per_second']:.3g} | {row['flops_per_second'] / 1e9:.0f} | {floor}"
            lowered = row.get("precision", case["precision"])
            shown = name if lowered == case["precision"] and name != "ours auto" else f"{name} ({lowered})"
            lines.append(f"| {what} | {shown} | {figures} | {used} | {over} |")
            what = ""
    return "\n".join(lines)


def report(result: dict[str, Any]) -> None:
    """What is measured of one case, in words."""
    on = result["machine"]
    rates = [f"{ceiling / 1e9:.0f} GFLOP/s in {each}" for each, ceiling in result["ceilings"].items()]
    ceilings = ", ".join(rates) or "less than a quarter of fp32's rate (it is emulated)"
    print(f"{on['device']}, {on['threads']} CPU threads; {result['rounds']} rounds, medians")
    print(machine_text(on))
    print(f"a step is {result['flops'] / 1e9:.1f} GFLOP; a large matrix product does {ceilings}")
    print(table([result]))
    for name, row in result["rows"].items():
        quartiles = f"{row['seconds']['quartile_low']:.3f} to {row['seconds']['quartile_high']:.3f} s a step"
        differences = ", ".join(f"{what} {value:.1e}" for what, value in row["differences"].items())
        peak = f"; {row['memory']['peak']:.0f} MiB at the peak" if row["memory"] else ""
        print(f"{name}: quartiles {quartiles}; relative to ours: {differences}{peak}")
    if result.get("ours_synchronises"):
        print(f"a step of ours waits for the device: {result['ours_synchronises']}")


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Seconds a clip against frames and against resolution, both axes logarithmic; dashed, the floor."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    videos = [result for result in results if len(result["case"]["size"]) == 3]
    for axis, plot, label in ((0, axes[0], "frames"), (1, axes[1], "height and width, pixels")):
        lines: dict[str, list[tuple[int, float]]] = {}
        for result in videos:
            case = result["case"]
            usual = ARCHITECTURES[case["model"]].input_size
            if any(case["size"][other] != usual[other] for other in range(3) if (other == 0) != (axis == 0)):
                continue
            points = {name: row["seconds"]["median"] for name, row in result["rows"].items()}
            if result["ceiling_flops_per_second"]:
                points["floor"] = result["flops"] / result["ceiling_flops_per_second"]
            for name, value in points.items():
                key = f"{case['model']}, {name}"
                lines.setdefault(key, []).append((case["size"][axis], value / case["batch_size"]))
        for name, line in lines.items():
            x, y = zip(*sorted(line), strict=True)
            plot.plot(x, y, linestyle="--" if name.endswith("floor") else "-", marker="o", markersize=3, label=name)
        ticks = sorted({x for line in lines.values() for x, _ in line})
        plot.set(xscale="log", yscale="log", xlabel=label, xticks=ticks, xticklabels=ticks)
        plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plot.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        plot.minorticks_off()
        plot.grid(alpha=0.3)
    axes[0].set_ylabel(f"seconds a clip ({videos[0]['case']['task']})" if videos else "")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
