#!/usr/bin/env python3
"""Runs `elastic up` under a workload and the same workload in the simulator, and prints both side by side.

Usage: scripts/simulator_check.py [--policy slo,step] [--speed 2] [--pace 100ms] [--workload FILE]
       [--scale FACTOR] [--seed 1] [--replicas-max 16] [--output FILE]

The executable is target/release/elastic, or $ELASTIC. Replicas are paced: each answer is held until its image has
been worked on for `--pace`, so that a small machine carries enough of them for the control to matter. The simulator
is given the service time, its variation and the start-up time that were measured in the real run, and the same
arrivals: both make them from the same workload and seed. Everything stays on loopback and ends by itself.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ELASTIC = os.environ.get("ELASTIC", os.path.join(ROOT, "target", "release", "elastic"))
PROMISE = "330ms"
# How much later than planned the load generator may be before its run is not believed.
LAG_MAX = "50ms"
# Largest difference between machine and simulator, as a share of the larger.
WITHIN = 0.2
# Numbers of misses that are no further apart than so many standard deviations (of a Poisson count) may be the same.
CHANCE = 2


def ask(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def wait_for(what, limit_s):
    """The first true answer of `what`, asked ten times a second."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    return None


def watch(autoscale, load):
    """Looks at the fleet twice a second until the load ends: the mean number of replicas, starting ones included."""
    samples, start_up_ms = [], {}
    while load.poll() is None:
        replicas = ask(f"{autoscale}/replicas")
        samples.append(sum(replica["state"] in ("starting", "ready", "draining") for replica in replicas))
        for replica in replicas:
            if replica.get("startup_ms"):
                start_up_ms[replica["pid"]] = replica["startup_ms"]
        time.sleep(0.5)
    return sum(samples) / len(samples), max(samples), sorted(start_up_ms.values())


def real(args, policy, folder):
    """One run on this machine; its figures."""
    addresses = os.path.join(folder, f"{policy}.json")
    log = open(os.path.join(folder, f"{policy}.log"), "w", encoding="utf-8")
    up = subprocess.Popen(
        [ELASTIC, "up", "--port", "0", "--monitor-port", "0", "--autoscale-port", "0", "--addresses", addresses]
        + ["--policy", policy, "--pace", args.pace, "--p99-target", PROMISE, "--deadline", PROMISE]
        + ["--replicas-min", str(args.replicas_min), "--replicas-max", str(args.replicas_max)],
        stdout=log,
        stderr=log,
    )
    try:
        if not wait_for(lambda: os.path.exists(addresses) or up.poll() is not None, 20) or up.poll() is not None:
            sys.exit(f"simulator_check: elastic up did not start: see {log.name}")
        with open(addresses, encoding="utf-8") as file:
            at = json.load(file)
        ready = lambda: (ask(f"{at['monitor']}/stats").get("slots") or 0) >= args.replicas_min
        if not wait_for(ready, 30):
            sys.exit(f"simulator_check: no replica became ready: see {log.name}")
        report = os.path.join(folder, f"{policy}-load.json")
        load = subprocess.Popen(
            [ELASTIC, "load", "--target", at["dispatch"], "--json", report, "--quiet", "--lag-max", LAG_MAX]
            + ["--workload", args.workload, "--speed", str(args.speed), "--scale", str(args.scale)]
            + ["--poisson", "--seed", str(args.seed), "--photos", os.path.join(ROOT, "tests", "photos")],
            stdout=log,
            stderr=log,
        )
        replicas_mean, replicas_max, start_up_ms = watch(at["autoscale"], load)
        if load.returncode not in (0, 1) or not os.path.exists(report):
            sys.exit(f"simulator_check: elastic load ended with {load.returncode}: see {log.name}")
        stats = ask(f"{at['monitor']}/stats")
        changes = sum(
            decision["replicas"] != decision["replicas_before"]
            for decision in ask(f"{at['autoscale']}/decisions")["decisions"]
        )
        with open(report, encoding="utf-8") as file:
            loaded = json.load(file)
        return {
            "load_exit": load.returncode,
            "load": loaded,
            "requests": stats["ended"],
            "missed_share": stats["missed"] / max(stats["ended"], 1),
            "replicas_mean": replicas_mean,
            "replicas_max": replicas_max,
            "changes": changes,
            "service_ms": stats["service_ms"],
            "start_up_ms": start_up_ms[len(start_up_ms) // 2] if start_up_ms else 0,
        }
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGTERM)
            try:
                up.wait(30)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()


def simulated(args, policy, seen):
    """The same in the simulator, with the times that were seen."""
    service = seen["service_ms"]
    command = [ELASTIC, "simulate", "--json", "--policy", policy, "--workload", args.workload]
    command += ["--speed", str(args.speed), "--scale", str(args.scale), "--seed", str(args.seed)]
    command += ["--service-time", f"{service['mean'] * 1000:.0f}us", "--cv", f"{service['cv']:.4f}"]
    command += ["--start-up", f"{max(seen['start_up_ms'], 1)}ms", "--promise", PROMISE]
    command += ["--replicas-min", str(args.replicas_min), "--replicas-max", str(args.replicas_max)]
    command += ["--replicas-start", str(args.replicas_min)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[0]


def near(a, b):
    return abs(a - b) <= WITHIN * max(a, b)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="slo,step", help="rules, one after the other")
    parser.add_argument("--workload", default=os.path.join(ROOT, "workload.txt"))
    parser.add_argument("--speed", type=float, default=1.0, help="divides how long a line lasts")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every rate")
    parser.add_argument("--pace", default="100ms", help="least time that a replica works on an image")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas-min", type=int, default=1)
    parser.add_argument("--replicas-max", type=int, default=16)
    parser.add_argument("--output", help="also write the figures there, as JSON")
    args = parser.parse_args()
    if not os.access(ELASTIC, os.X_OK):
        sys.exit(f"simulator_check: no executable at {ELASTIC}: run 'make build' first, or set ELASTIC")

    rows, apart = [], []
    # Kept where something goes wrong: it has the logs.
    folder = tempfile.mkdtemp(prefix="elastic-simulator-check.")
    for policy in args.policy.split(","):
        print(f"simulator_check: {policy} on this machine", file=sys.stderr)
        seen = real(args, policy, folder)
        told = simulated(args, policy, seen)
        rows.append({"policy": policy, "machine": seen, "simulator": told})
        if not near(seen["replicas_mean"], told["replicas_mean"]):
            apart.append(f"{policy}: mean replicas")
        counts = [run["missed_share"] * run["requests"] for run in (seen, told)]
        by_chance = abs(counts[0] - counts[1]) <= CHANCE * sum(counts) ** 0.5
        if not by_chance and not near(seen["missed_share"], told["missed_share"]):
            apart.append(f"{policy}: misses")
    shutil.rmtree(folder)
    print("| rule | where | requests | missed | mean replicas | most | changes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        seen, told = row["machine"], row["simulator"]
        service = seen["service_ms"]
        print(
            f"| `{row['policy']}` | machine (service {service['mean']:.1f} ms, cv {service['cv']:.3f}, start-up "
            f"{seen['start_up_ms']} ms) | {seen['requests']} | {seen['missed_share']:.2%} | "
            f"{seen['replicas_mean']:.2f} | {seen['replicas_max']} | {seen['changes']} |"
        )
        hours = told["replica_seconds"] / told["replicas_mean"] / 3600
        print(
            f"| | simulator | {told['requests']} | {told['missed_share']:.2%} | {told['replicas_mean']:.2f} | "
            f"{told['replicas_max']} | {told['scale_actions_per_hour'] * hours:.0f} |"
        )
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    if apart:
        sys.exit(f"simulator_check: further apart than {WITHIN:.0%}: {', '.join(apart)}")


if __name__ == "__main__":
    main()
