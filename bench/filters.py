# SPDX-License-Identifier: BSD-3-Clause
"""The part of the benchmark that measures the filters, radoscache above all.

It lets nbdkit serve the same thing with one filter and another or none, in
the rounds of run-bench.py and with its way of measuring.  README.md says why
each comparison is made as it is.
"""

import os
import statistics
from dataclasses import dataclass

from benchlib import (KIB, MIB, BenchError, RunningServer, command_output,
                      create_image, median, number, ratio, say)


@dataclass
class Variant:
    """One way to put a filter above what is served, or none."""
    label: str
    filter: str = ""
    parameters: tuple = ()


WRITE_BACK = "write-back"
VARIANTS = {
    "none": Variant("no filter"),
    "stock": Variant("nbdkit's cache filter", "cache"),
    "stock-on-read": Variant("nbdkit's cache filter, cache-on-read=true",
                             "cache", ("cache-on-read=true",)),
    "cached": Variant("radoscache", "radoscache"),
    "no-read-ahead": Variant("radoscache, cache-readahead=0", "radoscache",
                             ("cache-readahead=0",)),
    WRITE_BACK: Variant("radoscache, write-back", "radoscache",
                        ("cache-mode=writeback",)),
}


@dataclass
class FilterWorkload:
    name: str
    label: str
    below: str        # what is served: memory, file or rados
    variants: tuple
    base: str         # the variant that others are compared with
    targets: tuple    # (variant, smallest ratio of its IOPS to the base's)
    load: tuple       # arguments of nbd-load
    part: int = 1     # of an image's size: what is read and written
    fresh: bool = False  # each load has such a part of its own, not warmed up
    times: int = 1    # in each round, with so much less time

    @property
    def sequential(self):
        return "--pattern=sequential" in self.load


HITS = ("--op=read", "--pattern=random", "--prepare=write", "--depth=32")
CHANGES = ("--pattern=random", "--flush", "--depth=32", "--connections=4")
WRITTEN = ("--prepare=write", *CHANGES)
WAS_READ = ("--prepare=read", *CHANGES)
MIX = ("--op=mix", "--reads=70")
REREAD = ("--op=read", "--pattern=random", "--prepare=read")
CACHES = ("none", "stock", "cached", WRITE_BACK)

FILTER_WORKLOADS = [
    FilterWorkload(
        "filter-hits-4k-d32", "4 KiB hits over memory, depth 32", "memory",
        ("none", "cached"), "none", (("cached", 0.9),), HITS, part=16,
        times=4),
    FilterWorkload(
        "filter-hits-4k-d32-c4",
        "4 KiB hits over memory, depth 32, 4 connections", "memory",
        ("none", "cached"), "none", (("cached", 0.9),),
        (*HITS, "--connections=4"), part=16, times=4),
    FilterWorkload(
        "filter-write-4k-d32-c4",
        "4 KiB random write over file, depth 32, 4 connections", "file",
        CACHES, "stock", (("cached", 2), (WRITE_BACK, 2)),
        ("--op=write", *WRITTEN), part=16),
    FilterWorkload(
        "filter-mix-4k-d32-c4",
        "4 KiB, 70 % reads and 30 % writes over file, depth 32, "
        "4 connections", "file",
        CACHES, "stock", (("cached", 2), (WRITE_BACK, 2)),
        (*MIX, *WRITTEN), part=16),
    FilterWorkload(
        "filter-rados-write-4k-d32-c4",
        "4 KiB random write over rados to what was read, depth 32, "
        "4 connections", "rados",
        ("stock", WRITE_BACK), "stock", ((WRITE_BACK, 2),),
        ("--op=write", *WAS_READ), part=4),
    FilterWorkload(
        "filter-rados-mix-4k-d32-c4",
        "4 KiB, 70 % reads and 30 % writes over rados of what was read, "
        "depth 32, 4 connections", "rados",
        ("stock", "stock-on-read", WRITE_BACK), "stock", ((WRITE_BACK, 2),),
        (*MIX, *WAS_READ), part=4),
    FilterWorkload(
        "filter-reread-4k-d1",
        "4 KiB random read again over rados, depth 1", "rados",
        ("none", "cached"), "none", (("cached", 5),),
        (*REREAD, "--depth=1"), part=32),
    FilterWorkload(
        "filter-reread-4k-d32",
        "4 KiB random read again over rados, depth 32", "rados",
        ("none", "cached"), "none", (("cached", 5),),
        (*REREAD, "--depth=32"), part=32),
    FilterWorkload(
        "filter-sequential-read-4k-d1",
        "4 KiB sequential first read over rados, depth 1", "rados",
        ("none", "cached", "no-read-ahead"), "none", (("cached", 4),),
        ("--op=read", "--pattern=sequential", "--depth=1"), part=16,
        fresh=True),
    FilterWorkload(
        "filter-sequential-write-4k-d1",
        "4 KiB sequential write over rados, depth 1, with the flush at the "
        "end", "rados",
        ("none", "cached", WRITE_BACK), "none", ((WRITE_BACK, 5),),
        ("--op=write", "--pattern=sequential", "--depth=1", "--flush",
         "--final-flush")),
]


class FilterBench:
    """Runs the workloads; `bench` is the Bench that they are a part of."""

    def __init__(self, bench):
        self.bench = bench
        self.image = None
        self.loads = {}  # (workload, variant) -> [result of a round]
        self.parts = 0   # of the image that were read
        self.help = self.filter_help()
        self.workloads = [w for w in FILTER_WORKLOADS
                          if self.help and bench.selected(w.name)]

    def filter_help(self):
        """What the filter says about itself; nothing if it is left out."""
        if not any(s.name == "plugin" for s in self.bench.servers):
            return ""
        try:
            return command_output([self.bench.options.run, "nbdkit",
                                   "--filter=radoscache", "null", "--help"])
        except BenchError as error:
            if self.bench.options.need_plugin:
                raise
            say(f"the filter is left out: {error}")
            return ""

    def prepare(self):
        if any(w.below == "rados" for w in self.workloads):
            say("filling the image for filters")
            size = self.bench.options.image_size
            self.image = create_image(self.bench.cluster, "filters", size, 2)
            self.bench.fill_all(self.image)

    def variants(self, workload):
        return [v for v in workload.variants
                if v != WRITE_BACK or "cache-dirty=" in self.help]

    def server(self, workload, variant):
        kind = VARIANTS[variant]
        size = self.bench.options.image_size
        arguments = [f"--filter={kind.filter}"] if kind.filter else []
        # The stock filter keeps its file there, beside the one it caches.
        environment = {"TMPDIR": self.bench.folder}
        if workload.below == "rados":
            arguments += self.bench.rados_arguments(self.image)
        elif workload.below == "memory":
            arguments += ["memory", f"{size // workload.part}"]
        else:
            path = os.path.join(self.bench.folder, "disk")
            with open(path, "wb") as file:  # a new one each time, all a hole
                file.truncate(size)
            arguments += ["file", path]
        arguments += kind.parameters
        if kind.filter == "radoscache":
            room = 4 * (size // workload.part)
            if workload.below != "rados":
                arguments.append("cache-assume=exclusive")
            dirty = 8 * MIB if workload.sequential else room
            if variant == WRITE_BACK:
                arguments.append(f"cache-dirty={dirty}")
                room += dirty  # it is a part of cache-size
            if not workload.sequential:
                arguments.append(f"cache-size={room}")
        return RunningServer(self.bench.folder,
                             self.bench.nbdkit(*arguments), environment)

    def load_arguments(self, workload, uri):
        options = self.bench.options
        arguments = [self.bench.nbd_load, "--uri=" + uri, *workload.load,
                     f"--block-size={4 * KIB}",
                     f"--seed={self.bench.round + 1}", "--gate",
                     f"--seconds={options.seconds / self.times(workload)}"]
        size = options.image_size // workload.part
        arguments.append(f"--size={size}")
        if workload.fresh:
            place = self.parts % workload.part * size
            self.parts += 1
            return arguments + [f"--offset={place}",
                                f"--count={size // (4 * KIB)}"]
        return arguments + [f"--warmup={options.warmup}"]

    def times(self, workload):
        return 1 if self.bench.options.quick else workload.times

    def run_round(self, round_number):
        for workload in self.workloads:
            times = self.times(workload)
            for i in range(times):
                self.run_all(workload, round_number, round_number * times + i)

    def run_all(self, workload, round_number, turn):
        variants = self.variants(workload)
        turn %= len(variants)  # another one goes first each time
        for variant in variants[turn:] + variants[:turn]:
            with self.server(workload, variant) as server:
                result = self.bench.gated(
                    self.load_arguments(workload, server.uri),
                    pid=server.pid)
            self.loads.setdefault((workload.name, variant),
                                  []).append(result)
            say("round %d: %s, %s: %.0f/s, %.1f us, %.2f sw" % (
                round_number + 1, workload.name, variant, result["iops"],
                result["cpu_per_op"], result["switches_per_op"]))

    def profile(self, name):
        """Of the variants that missed their targets."""
        workload = next(w for w in FILTER_WORKLOADS if w.name == name)
        for variant, wanted, measured in self.ratios(workload):
            if measured is None or measured >= wanted:
                continue
            with self.server(workload, variant) as server:
                self.bench.profile_server(
                    f"{workload.label}: {VARIANTS[variant].label}", server,
                    self.load_arguments(workload, server.uri))

    # -- results

    def speed(self, workload, variant):
        results = self.loads.get((workload.name, variant))
        return median(results, "iops") if results else None

    def ratios(self, workload):
        """(variant, target, ratio of medians or None)"""
        base = self.speed(workload, workload.base)
        for variant, wanted in workload.targets:
            measured = ratio(self.speed(workload, variant), base)
            yield variant, wanted, measured and round(measured, 2)

    def targets(self):
        """(text, wanted, measured, workload, note)"""
        for workload in FILTER_WORKLOADS:
            # A filter adds work: it is hardly faster than none over something
            # that is as fast as memory.
            limit = None if workload.base == "none" else ratio(
                self.speed(workload, "none"),
                self.speed(workload, workload.base))
            note = "" if limit is None else f" (no filter: {number(limit)})"
            for variant, wanted, measured in self.ratios(workload):
                yield (f"{workload.label}: IOPS, {VARIANTS[variant].label}, "
                       f"against {VARIANTS[workload.base].label}",
                       wanted, measured, workload.name, note)

    def report_lines(self):
        for workload in FILTER_WORKLOADS:
            rows = [self.row(workload, v) for v in workload.variants
                    if (workload.name, v) in self.loads]
            if rows:
                yield ""
                yield f"### {workload.label} (`{workload.name}`)"
                yield ""
                yield (f"| served | IOPS | spread | ÷ "
                       f"{VARIANTS[workload.base].label} | p50 µs | p99 µs | "
                       "server CPU µs/op | switches/op | OSD CPU µs/op | "
                       "client CPU µs/op |")
                yield "|---|" + "---:|" * 9
                yield from rows

    def row(self, workload, variant):
        results = self.loads[workload.name, variant]
        speeds = sorted(r["iops"] for r in results)
        middle = statistics.median(speeds)
        cells = [
            VARIANTS[variant].label, number(middle),
            "±%.0f %%" % ((speeds[-1] - speeds[0]) / middle / 2 * 100)
            if len(speeds) > 1 else "–",
            number(ratio(middle, self.speed(workload, workload.base))),
            *(number(median(results, key), 1) for key in (
                "latency_us_p50", "latency_us_p99", "cpu_per_op")),
            number(median(results, "switches_per_op")),
            number(median(results, "osd_cpu_per_op"), 1)
            if workload.below == "rados" else "–",
            number(median(results, "client_cpu_per_op"), 1),
        ]
        return "| " + " | ".join(cells) + " |"
