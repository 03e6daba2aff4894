#!/usr/bin/env python3
"""Plays the traces through `elastic simulate` with every rule and writes the tables of docs/evaluation.md.

Usage: scripts/evaluate.py [--output FILE] [--quick]
The executable is target/release/elastic, or $ELASTIC. The same traces, settings and seed give the same tables.
Ends with 1 if the rule `slo` missed a target at the usual settings.
"""

import argparse
import json
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ELASTIC = os.environ.get("ELASTIC", os.path.join(ROOT, "target", "release", "elastic"))

# Name, file, flags, and the targets of `slo`: missed share, ratio to the bound.
TRACES = [
    ("diurnal", "traces/diurnal.txt", [], (0.002, 1.10)),
    ("bursty", "traces/bursty.txt", [], (0.002, 1.25)),
    ("spiky × 5", "traces/spiky.txt", ["--scale", "5"], (0.02, None)),
    (
        "flashcrowd ÷ 12",
        "traces/flashcrowd_per_minute.txt",
        ["--line-seconds", "60", "--scale", str(1 / 12)],
        (0.002, 1.10),
    ),
    ("workload", "workload.txt", [], (None, None)),
]
# Title, flags, and a remark.
SETTINGS = [
    ("100 ms service, cv 0.1, 5 s start-up", [], ""),
    ("10 ms service", ["--service-time", "10ms"], ""),
    ("30 ms service", ["--service-time", "30ms"], ""),
    (
        "300 ms service",
        ["--service-time", "300ms", "--replicas-max", "200"],
        "The promise is 330 ms, and 16 % of the requests need longer than that by themselves, whatever the fleet: "
        "no rule can keep it. `slo` does not count those against its budget.",
    ),
    (
        "1 s start-up",
        ["--start-up", "1s"],
        "The bound is lower here, since whoever knows the future loses a second where it lost five; `slo` holds as long as before.",
    ),
    (
        "20 s start-up",
        ["--start-up", "20s"],
        "Every burst lasts 20 s before the first replica that it calls for is ready, and a forecast over 28 s is worth less.",
    ),
    (
        "cv 0.5",
        ["--cv", "0.5"],
        "0.28 % of the requests need longer than 330 ms by themselves, so that no rule misses less."
        " Waits are kept under 330 ms less the 95th percentile of the service time, which leaves 135 ms instead of 213.",
    ),
]
# Policy and dispatch of each row.
ROWS = [
    ("slo", "central"),
    ("step", "random"),
    ("step", "central"),
    ("hpa", "central"),
    ("hpa-rps", "central"),
    ("keda", "central"),
    ("kpa", "central"),
    ("ray", "central"),
]
RIVALS = [row for row in ROWS if row[0] != "slo" and row != ("step", "central")]
ACTIONS_MAX = 120
# Within so much the other figure counts as no worse.
WITHIN = 0.03


def simulate(file, flags):
    """The runs of one trace under one setting, by policy and dispatch."""
    runs = {}
    for dispatch, policies in (
        ("central", [policy for policy, dispatch in ROWS if dispatch == "central"]),
        ("random", [policy for policy, dispatch in ROWS if dispatch == "random"]),
    ):
        command = [ELASTIC, "simulate", "--json", "--workload", os.path.join(ROOT, file)]
        command += ["--policy", ",".join(policies), "--dispatch", dispatch, *flags]
        for run in json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout):
            runs[run["policy"], run["dispatch"]] = run
    return runs


def percent(share):
    return "–" if share is None else f"{share * 100:.3f} %" if share < 0.01 else f"{share * 100:.1f} %"


def table(runs_by_trace):
    """One row a policy, one column a trace: missed, replicas, ratio, actions an hour."""
    lines = ["| rule, dispatch | " + " | ".join(name for name, *_ in TRACES if name in runs_by_trace) + " |"]
    lines.append("| --- |" + " --- |" * len(runs_by_trace))
    for row in ROWS:
        cells = []
        for name, *_ in TRACES:
            if name in runs_by_trace:
                run = runs_by_trace[name][row]
                cells.append(
                    f"{percent(run['missed_share'])} · {run['replicas_mean']:.2f} "
                    f"(× {run['clairvoyant_ratio']:.2f}) · {run['scale_actions_per_hour']:.0f}/h"
                )
        title = f"`{row[0]}`, {row[1]}"
        lines.append(f"| {'**' + title + '**' if row[0] == 'slo' else title} | " + " | ".join(cells) + " |")
    bounds = [
        f"{runs['slo', 'central']['replicas_mean'] / runs['slo', 'central']['clairvoyant_ratio']:.2f}"
        for runs in runs_by_trace.values()
    ]
    lines.append("| least possible, knowing the future | " + " | ".join(bounds) + " |")
    return lines


def judge_slo(runs_by_trace):
    """The targets of `slo` alone: each with its figure and whether it is met."""
    verdicts = []
    for name, _, _, (missed_max, ratio_max) in TRACES:
        if name not in runs_by_trace:
            continue
        slo = runs_by_trace[name]["slo", "central"]
        if missed_max is not None:
            verdicts.append(
                (f"{name}: missed at most {missed_max * 100:g} %", percent(slo["missed_share"]), slo["missed_share"] <= missed_max)
            )
        if ratio_max is not None:
            ratio = slo["clairvoyant_ratio"]
            verdicts.append((f"{name}: at most {ratio_max:.2f} × the least possible", f"{ratio:.3f}", ratio <= ratio_max))
        actions = slo["scale_actions_per_hour"]
        verdicts.append((f"{name}: at most {ACTIONS_MAX} changes an hour", f"{actions:.0f}", actions <= ACTIONS_MAX))
    return verdicts


def judge(runs_by_trace):
    """The targets at the usual settings, those against rivals too."""
    verdicts = judge_slo(runs_by_trace)
    for rival in RIVALS:
        beaten, dominates = [], []
        for name, *_ in TRACES:
            slo, other = runs_by_trace[name]["slo", "central"], runs_by_trace[name][rival]
            fewer_misses = slo["missed_share"] < other["missed_share"]
            fewer_replicas = slo["replicas_mean"] < other["replicas_mean"]
            misses_within = slo["missed_share"] <= other["missed_share"] + WITHIN
            replicas_within = slo["replicas_mean"] <= other["replicas_mean"] * (1 + WITHIN)
            if (fewer_misses and replicas_within) or (fewer_replicas and misses_within):
                beaten.append(name)
            if other["missed_share"] < slo["missed_share"] and other["replicas_mean"] < slo["replicas_mean"]:
                dominates.append(name)
        title = f"`{rival[0]}` with {rival[1]} dispatch"
        verdicts.append((f"{title} has both fewer misses and fewer replicas nowhere", ", ".join(dominates) or "nowhere", not dominates))
        verdicts.append((f"{title} is beaten on at least four of five", f"{len(beaten)}: " + ", ".join(beaten), len(beaten) >= 4))
    return verdicts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=os.path.join(ROOT, "docs", "evaluation.md"), help="where the tables go")
    parser.add_argument("--quick", action="store_true", help="the usual settings alone, and not the longest trace")
    args = parser.parse_args()
    if not os.access(ELASTIC, os.X_OK):
        sys.exit(f"evaluate: no executable at {ELASTIC}: run 'make build' first, or set ELASTIC")

    settings = SETTINGS[:1] if args.quick else SETTINGS
    traces = [trace for trace in TRACES if not (args.quick and "--line-seconds" in trace[2])]
    started = time.monotonic()
    results = []
    for title, flags, remark in settings:
        runs_by_trace = {}
        for name, file, trace_flags, _ in traces:
            elapsed = time.monotonic() - started
            print(f"evaluate: {elapsed:4.0f} s  {title}: {name}", file=sys.stderr)
            runs_by_trace[name] = simulate(file, trace_flags + flags)
        results.append((title, remark, runs_by_trace))

    lines = [
        "# The rules compared, in simulated time",
        "",
        "Written by `make evaluate` (`scripts/evaluate.py`), which plays the traces of [traces/](../traces/README.md)",
        "and `workload.txt` through `elastic simulate`. Everything here is simulated; what was run on a machine is in",
        "[autoscaling.md](autoscaling.md#the-simulator-against-the-machine). Requests come as a Poisson process of the",
        "trace's rate (seed 1); the promise is 330 ms; one request at a time per replica; a request that is refused",
        "counts as missed. All rules scale the same dispatcher with one queue, which helps the rivals, except where",
        "a row says that requests are bound to a random replica: with `step` that is the service that people begin with.",
        "The rules and what they stand for are in [autoscaling.md](autoscaling.md#the-rivals).",
        "",
        "Each cell: share of requests over the promise · mean replicas, those that start included (× the least",
        "possible for somebody who knows the future) · changes of the number of replicas an hour.",
    ]
    for title, remark, runs_by_trace in results:
        lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
        lines += [remark, ""] if remark else []
        lines += table(runs_by_trace)
        if title != SETTINGS[0][0]:
            missed = [f"{target}: {figure}" for target, figure, met in judge_slo(runs_by_trace) if not met]
            held = f"`slo` misses of the usual settings' targets: {'; '.join(missed)}." if missed else ""
            lines += ["", held or "`slo` meets the usual settings' targets here, too."]
    failed = False
    if not args.quick:
        verdicts = judge(results[0][2])
        failed = not all(met for _, _, met in verdicts)
        lines += ["", "## Targets at the usual settings", ""]
        lines += [f"A rule is beaten on a trace if `slo` has fewer misses with at most {WITHIN:.0%} more replicas, or fewer"]
        lines += [f"replicas with at most {WITHIN * 100:g} percentage points more misses. Rivals that keep a third more"]
        lines += ["replicas miss less still: nobody who keeps that many has to.", ""]
        lines += ["| target | figure | |", "| --- | --- | --- |"]
        lines += [f"| {target} | {figure} | {'met' if met else '**missed**'} |" for target, figure, met in verdicts]
    text = "\n".join(lines) + "\n"
    if args.quick:
        print(text)
    else:
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(text)
        print(f"evaluate: {args.output} written in {time.monotonic() - started:.0f} s", file=sys.stderr)
    if failed:
        sys.exit("evaluate: a target was missed: see the last table")


if __name__ == "__main__":
    main()
