"""Figures, their bars, and how they are shown."""

import json
import pathlib
import tomllib


class Report:
    """Prints each figure as one JSON line and keeps them for the results table."""

    def __init__(self, bars_path, binding=True):
        self.bars = tomllib.loads(pathlib.Path(bars_path).read_text())["bars"]
        self.binding = binding
        self.figures = []

    def add(self, name, value, unit):
        bar = self.bars.get(name, {}) if self.binding else {}
        # Written so that NaN passes no bar.
        passes = ("min" not in bar or value >= bar["min"]) and (
            "max" not in bar or value <= bar["max"]
        )
        figure = {
            "name": name,
            "value": round(float(value), 3),
            "unit": unit,
            "bar": bar.get("min", bar.get("max")),
            "pass": bool(passes),
        }
        self.figures.append(figure)
        print(json.dumps(figure), flush=True)

    @property
    def passed(self):
        return all(figure["pass"] for figure in self.figures)

    def append_to(self, path, heading, context):
        lines = ["", f"## {heading}", "", context, "", "| figure | value | unit | bar | |", "|---|---:|---|---:|---|"]
        for f in self.figures:
            bar = "" if f["bar"] is None else f"{f['bar']:g}"
            verdict = "" if f["bar"] is None else ("pass" if f["pass"] else "**miss**")
            lines.append(f"| {f['name']} | {f['value']:.10g} | {f['unit']} | {bar} | {verdict} |")
        if not path.exists():
            path.write_text("# Benchmark results\n\nAppended by `make bench`; bars are in `bars.toml`.\n")
        with path.open("a") as out:
            out.write("\n".join(lines) + "\n")
