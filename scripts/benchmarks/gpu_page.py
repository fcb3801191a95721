"""What a GPU should reach, what it reached, and the page that says so. It needs neither torch nor a GPU."""

from __future__ import annotations

from typing import Any

SIZES = ("base", "large", "huge")
#: Published dense FLOP/s of bf16 with fp32 sums, by what a device's name begins with after "NVIDIA "; longest first.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "GeForce RTX 4090": 165.2e12,
    "GeForce RTX 3090": 71e12,
}
#: Clips a second of 16x224 in bf16; of any other device those of an H100.
CLIPS = {"H200": (1500, 450, 190), "H100": (1200, 370, 150)}
MAE_SPEED, PEAK_SHARE = 3.0, 0.4


def peak_of(device: str) -> float | None:
    """Published FLOP/s of a device by its name; None where we know none."""
    name = device.removeprefix("NVIDIA ")
    return next((peak for begin, peak in PEAKS.items() if name.startswith(begin)), None)


def best(parts: dict[str, Any], task: str, size: str, field: str) -> float | None:
    """The greatest value of a field that ours reached in a task, eager or compiled."""
    rows = [row for part in ("throughput", "compiled") for row in parts.get(part, {}).get("rows", [])]
    values = [row[field] for row in rows if (row.get("task"), row.get("size")) == (task, size) and row.get(field)]
    return max(values, default=None)


def verdict(what: str, value: float | None, aim: float | None, *, most: bool = False) -> dict[str, Any]:
    """A line: met where the value is at least the aim (``most``: at most); what was not measured is missed."""
    met = value is not None and aim is not None and (value <= aim if most else value >= aim)
    return {"what": what, "value": value, "aim": aim, "rule": "at most" if most else "at least", "met": met}


def verdicts(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """All lines: a part that is not done is missed; then the aims of speed; then what parts judged themselves."""
    lines = []
    for name, part in parts.items():
        lines.append({"what": f"part {name}", "value": part["status"], "aim": "done", "rule": "is"})
        lines[-1]["met"] = part["status"] == "done"
        lines += [row["verdict"] for row in part["rows"] if "verdict" in row]
    if not {"throughput", "compiled"} & parts.keys():
        return lines
    device = next((row["name"] for row in parts.get("machine", {}).get("rows", []) if "name" in row), "unknown")
    aims = next((clips for name, clips in CLIPS.items() if name in device), CLIPS["H100"])
    for size, aim in zip(SIZES, aims, strict=True):
        lines.append(verdict(f"{size}, inference, clips/s", best(parts, "inference", size, "clips_per_second"), aim))
    for size in SIZES:
        speed = best(parts, "mae", size, "speed_over_reference")
        lines.append(verdict(f"{size}, MAE step, times the reference's speed", speed, MAE_SPEED))
    for size in SIZES[1:]:
        share = best(parts, "inference", size, "share_of_peak")
        lines.append(verdict(f"{size}, inference, share of the published peak", share, PEAK_SHARE))
    return lines


def shown(value: Any) -> str:
    """A figure in a cell."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "not measured" if value is None else str(value).replace("|", "/").replace("\n", " ")


def page(found: dict[str, Any]) -> str:
    """Markdown: each aim beside its figure, then all figures of each part."""
    parts, lines = found["parts"], found["verdicts"]
    machine = {key: value for row in parts.get("machine", {}).get("rows", []) for key, value in row.items()}
    missed = sum(not line["met"] for line in lines)
    text = ["# On a GPU", "", f"Measured on: {machine.get('name', 'unknown')}, by `scripts/check_gpu.sh`."]
    if found["device"] == "cpu":
        text.append("Tiny models stand in for the published ones here, on a CPU: the figures of speed mean nothing.")
    elif not any(name in machine.get("name", "") for name in CLIPS):
        text.append("There are no aims for this device: those of an H100 stand here.")
    text += ["", f"{len(lines) - missed} of {len(lines)} lines are met, {missed} MISSED.", ""]
    text += ["| what | figure | aim | |", "|-|-|-|-|"]
    for line in lines:
        cells = (line["what"], shown(line["value"]), f"{line['rule']} {shown(line['aim'])}")
        text.append(f"| {' | '.join(cells)} | {'met' if line['met'] else 'MISSED'} |")
    for name, part in parts.items():
        text += ["", f"## {name} ({part['seconds']} s)", ""]
        rows = [row for row in part["rows"] if "verdict" not in row]
        names = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            text += [f"| {' | '.join(names)} |", "|-" * len(names) + "|"]
            text += [f"| {' | '.join(shown(row.get(key, '')) for key in names)} |" for row in rows]
    return "\n".join(text) + "\n"
