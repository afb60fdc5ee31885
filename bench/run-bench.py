#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Benchmark of nbdkit's rados plugin beside qemu-nbd and raw librados.

Starts one throw-away Ceph cluster (tests/mini-ceph, BlueStore), fills images,
and lets every server do the same work, one after the other in every round,
so that what disturbs the machine disturbs all of them.  bench/README.md
defines what the numbers mean.
"""

import argparse
import datetime
import json
import mmap
import os
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

sys.dont_write_bytecode = True  # leave nothing in the sources

from benchlib import (  # noqa: E402
    COPY_TIMEOUT, GIB, HERE, KIB, MIB, OBJECT_SIZE, POOL, STEP_TIMEOUT, TOP,
    BenchError, Cluster, Image, RunningServer, Sample, Watchdog, busy_ns,
    command_output, cpu_ns, create_image, die_with_parent, median, number,
    ratio, say, stop_process)
from filters import FILTER_WORKLOADS, FilterBench  # noqa: E402


# --------------------------------------------------------------------------
# Servers

@dataclass
class Server:
    """One kind of server that can be started on an image."""
    name: str
    label: str
    state: str = ""   # "half" or "full" where only one applies
    writes_only: bool = False
    small_only: bool = False   # 4 KiB workloads only
    nbd: bool = True


ALL_SERVERS = [
    Server("plugin", "plugin"),
    Server("qemu-nbd-served", "qemu-nbd, as served", state="half"),
    Server("qemu-nbd-best", "qemu-nbd, at its best", state="full"),
    Server("qemu-nbd-writeback", "qemu-nbd, cache=writeback", state="full",
           writes_only=True),
    Server("raw", "raw librados", nbd=False),
    Server("raw-hint", "raw librados, allocation hints", state="full",
           writes_only=True, nbd=False),
    Server("null", "nbdkit null", state="full", small_only=True),
]


# --------------------------------------------------------------------------
# Workloads

@dataclass
class Workload:
    name: str
    label: str
    op: str
    pattern: str
    block: int
    depth: int
    connections: int = 1
    clone: bool = False  # of the image, without an object of its own

    @property
    def source(self):
        """Which of the filled images it is for."""
        return "clone" if self.clone else self.op

    @property
    def small(self):
        return self.block <= 4 * KIB


WORKLOADS = [
    Workload("read-4k-d1", "4 KiB random read, depth 1",
             "read", "random", 4 * KIB, 1),
    Workload("read-4k-d32", "4 KiB random read, depth 32",
             "read", "random", 4 * KIB, 32),
    Workload("read-4k-d32-c4", "4 KiB random read, depth 32, 4 connections",
             "read", "random", 4 * KIB, 32, 4),
    Workload("clone-read-4k-d32",
             "4 KiB random read through a clone's parent, depth 32",
             "read", "random", 4 * KIB, 32, clone=True),
    Workload("write-4k-d1", "4 KiB random write, depth 1",
             "write", "random", 4 * KIB, 1),
    Workload("write-4k-d32", "4 KiB random write, depth 32",
             "write", "random", 4 * KIB, 32),
    Workload("write-4k-d32-c4", "4 KiB random write, depth 32, 4 connections",
             "write", "random", 4 * KIB, 32, 4),
    Workload("read-256k", "256 KiB sequential read, depth 8",
             "read", "sequential", 256 * KIB, 8),
    Workload("read-4m", "4 MiB sequential read, depth 4",
             "read", "sequential", 4 * MIB, 4),
    Workload("write-256k", "256 KiB sequential write, depth 8",
             "write", "sequential", 256 * KIB, 8),
    Workload("write-4m", "4 MiB sequential write, depth 4",
             "write", "sequential", 4 * MIB, 4),
]

STATES = {"half": "half full, in 64 KiB pieces; fresh server",
          "full": "full; map asked first"}


@dataclass
class Task:
    """A workload of another kind: one client command that is timed."""
    name: str
    label: str
    kinds: list = field(default_factory=list)


TASKS = [
    Task("nbdcopy-sparse", "nbdcopy of the sparse image to null:",
         ["plugin", "qemu-nbd", "rbd export"]),
    Task("nbdcopy-full", "nbdcopy of the full image to null:",
         ["plugin", "qemu-nbd", "rbd export"]),
    Task("fill-new", "nbdcopy of a file of random data to a new image, in "
         "requests of 1 MiB",
         ["plugin", "plugin, 256 KiB", "qemu-nbd", "qemu-nbd, 256 KiB",
          "rbd import"]),
    Task("map-sparse", "nbdinfo --map of the sparse image",
         ["plugin", "qemu-nbd"]),
    Task("map-large", "nbdinfo --map of the large sparse image",
         ["plugin", "plugin, lock held", "qemu-nbd"]),
    Task("map-plain", "nbdinfo --map of a large sparse image without an "
         "object map", ["plugin", "plugin, snapshot", "qemu-nbd"]),
    Task("map-huge", "nbdinfo --map of an empty image of 10 TiB",
         ["plugin", "plugin, lock held", "plugin, snapshot", "qemu-nbd"]),
]


class Bench:
    def __init__(self, options):
        self.options = options
        self.folder = os.path.realpath(tempfile.mkdtemp(prefix="bench."))
        self.cluster = None
        self.images = {}
        self.loads = {}   # (workload, state, server) -> [result of a round]
        self.tasks = {}   # (task, kind) -> [result of a round]
        self.copies = {}  # (workload, server) -> copied bytes per operation
        self.profiles = []
        self.raw_loop = self.program("raw-loop")
        self.nbd_load = self.program("nbd-load")
        self.servers = [s for s in ALL_SERVERS if s.name in options.servers]
        if "plugin" in options.servers and not self.plugin_works():
            self.servers = [s for s in self.servers if s.name != "plugin"]
        self.filters = FilterBench(self)

    def program(self, name):
        for folder in filter(None, [self.options.programs, HERE,
                                    os.getcwd()]):
            path = os.path.join(folder, name)
            if os.access(path, os.X_OK):
                return path
        raise BenchError(f"{name} is not built: run make first, or give "
                         "its folder with --programs")

    def plugin_works(self):
        try:
            command_output([self.options.run, "nbdkit", "rados",
                            "--dump-plugin"])
            return True
        except BenchError as error:
            if self.options.need_plugin:
                raise
            say(f"the plugin is left out: {error}")
            return False

    def close(self):
        if self.cluster:
            self.cluster.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def selected(self, name):
        return not self.options.only or any(
            re.fullmatch(pattern.replace("*", ".*"), name)
            for pattern in self.options.only)

    # -- servers

    def nbdkit(self, *arguments, built=True, threads=None):
        """The command line of nbdkit; `built`: with what this tree builds."""
        return [*([self.options.run] if built else []), "nbdkit", "-f",
                "-t", str(threads or self.options.threads), "-U", "SOCKET",
                "-P", "PID_FILE", *arguments]

    def rados_arguments(self, image):
        return ["rados", "pool=" + POOL, "image=" + image.name,
                "conf=" + self.cluster.conf, *self.options.plugin_option]

    def server(self, kind, image, writable, environment=None, threads=None):
        read_only = [] if writable else ["-r"]
        if kind == "plugin":
            command = self.nbdkit(*read_only, *self.rados_arguments(image),
                                  threads=threads)
        elif kind == "null":
            command = self.nbdkit(*read_only, "null", f"size={image.size}",
                                  built=False)
        else:
            cache = ("writeback" if kind == "qemu-nbd-writeback" else "none")
            command = ["qemu-nbd", "-k", "SOCKET", "-f", "raw", "-t",
                       "-e", "64", "--cache=" + cache, "--discard=unmap",
                       "--pid-file=PID_FILE", *read_only,
                       f"rbd:{POOL}/{image.name}:conf={self.cluster.conf}"]
        return RunningServer(self.folder, command, environment)

    # -- preparing

    def prepare(self):
        size = self.options.image_size
        self.cluster = Cluster(os.path.join(self.folder, "ceph"),
                               20 * GIB + 4 * size)
        ops = {w.op for w in WORKLOADS if self.selected(w.name)}
        clones = any(w.clone and self.selected(w.name) for w in WORKLOADS)
        if self.selected("nbdcopy-full"):
            ops.add("read")
        for op in sorted(ops):
            for state in STATES:
                say(f"filling the image for {op} workloads, {state}")
                self.images[op, state] = self.make_filled(op, state)
                if op == "read" and clones:
                    self.images["clone", state] = self.make_clone(state)
        for task, name, image_size, writes, *options in (
                ("*-sparse", "sparse", 64 * GIB, 500),
                ("map-large", "large", 1024 * GIB, 2000),
                ("map-plain", "plain", 1024 * GIB, 2000,
                 "--image-feature=layering"),
                ("map-huge", "huge", 10240 * GIB, 0)):
            wanted = [t for t in TASKS
                      if re.fullmatch(task.replace("*", ".*"), t.name)
                      and self.selected(t.name)]
            if wanted:
                if self.options.quick and name != "sparse":
                    image_size //= 64
                    writes //= 50
                say(f"making the {name} image")
                self.images[name] = self.make_sparse(name, image_size,
                                                     writes, options)
        self.filters.prepare()
        self.cluster.settle(30)

    def image_format(self, op):
        return (self.options.write_format if op == "write"
                else self.options.read_format)

    def fill(self, image, *arguments):
        with self.server("qemu-nbd-best", image, True) as server:
            command_output([self.nbd_load, "--uri=" + server.uri,
                            "--op=write", *arguments],
                           timeout=COPY_TIMEOUT)

    def fill_all(self, image):
        self.fill(image, "--pattern=sequential", "--depth=4",
                  f"--block-size={4 * MIB}",
                  f"--count={image.size // 4 // MIB}")

    def make_filled(self, op, state):
        size = self.options.image_size
        image = create_image(self.cluster, f"{op}-{state}", size,
                             self.image_format(op))
        if state == "full":
            self.fill_all(image)
        else:
            self.refill_half(image)
        return image

    def make_clone(self, state):
        """Reads through qemu-nbd and the plugin go to the parent; the raw
        loop reads the parent itself."""
        parent = self.images["read", state]
        self.cluster.rbd("snap", "create", "--no-progress",
                         f"{POOL}/{parent.name}@bench")
        name = f"clone-{state}"
        self.cluster.rbd("clone", "--rbd-default-clone-format", "2",
                         f"{POOL}/{parent.name}@bench", f"{POOL}/{name}")
        return Image(name, parent.size, parent.format, parent.prefix)

    def refill_half(self, image):
        """Every other 64 KiB of the image is there."""
        self.fill(image, "--pattern=sequential", "--depth=16",
                  f"--block-size={64 * KIB}", f"--stride={128 * KIB}",
                  f"--count={image.size // (128 * KIB)}")

    def make_sparse(self, name, size, writes, options):
        image = create_image(self.cluster, name, size,
                             2 if options else self.options.read_format,
                             *options)
        if writes:
            self.fill(image, "--pattern=random", "--depth=16",
                      "--block-size=4096", f"--count={writes}")
        if image.format == 2:
            self.cluster.rbd("snap", "create", "--no-progress",
                             f"{POOL}/{name}@bench")
        return image

    def restore_half(self):
        """Make the half full image for writes half full again."""
        image = self.images["write", "half"]
        if image.format == 1:
            # "rbd rm" wants the image in a directory that only "rbd create"
            # of old knew how to write.
            names = [f"{image.prefix}.{i:012x}"
                     for i in range(image.size // OBJECT_SIZE)]
            for start in range(0, len(names), 512):
                command_output(["rados", "-c", self.cluster.conf, "-p", POOL,
                                "rm", *names[start:start + 512]])
            self.refill_half(image)
        else:
            self.cluster.rbd("rm", "--no-progress", f"{POOL}/{image.name}")
            self.images["write", "half"] = self.make_filled("write", "half")

    # -- measuring

    def idle_osd(self):
        """CPU microseconds per second that an idle OSD uses."""
        self.cluster.settle()
        start, cpu = time.monotonic(), self.cluster.osd_cpu_ns()
        time.sleep(0.5 if self.options.quick else 5)
        return ((self.cluster.osd_cpu_ns() - cpu) / 1000
                / (time.monotonic() - start))

    def load_arguments(self, workload, state, kind, image, uri):
        """The command line of the load generator.  Places are the same for
        every server in one round, and others in the next."""
        seconds = self.options.seconds
        warmup = self.options.warmup
        arguments = [f"--op={workload.op}", f"--pattern={workload.pattern}",
                     f"--block-size={workload.block}",
                     f"--depth={workload.depth}",
                     f"--seed={self.round + 1}", "--gate"]
        if workload.op == "write" and state == "half":
            # One pass over the image and no more: then it is full.
            arguments.append(f"--count={image.size // workload.block}")
            warmup = 0
        arguments += [f"--seconds={seconds}", f"--warmup={warmup}"]
        if not kind.nbd:
            arguments = [self.raw_loop, "--conf=" + self.cluster.conf,
                         "--pool=" + POOL, "--prefix=" + image.prefix,
                         f"--digits={image.digits}", f"--size={image.size}",
                         f"--object-size={OBJECT_SIZE}", *arguments]
            if kind.name == "raw-hint":
                arguments.append("--alloc-hint")
            return arguments
        arguments = [self.nbd_load, "--uri=" + uri,
                     f"--connections={workload.connections}", *arguments]
        if workload.op == "write":
            # librbd's cache holds writes back only after the first flush
            # (rbd_cache_writethrough_until_flush), and qemu passes a flush
            # on only after a write: so it comes after the warm-up.
            arguments.append("--flush")
        return arguments

    def gated(self, arguments, pid=None, environment=None, inside=None):
        """Run a load generator through its gate (load-tools.hpp).  Return
        its result and the counters of the server."""
        client = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, **(environment or {})},
            preexec_fn=die_with_parent)
        try:
            timer = Watchdog(client, STEP_TIMEOUT + self.options.seconds)
            with timer:
                if client.stdout.readline() != "ready\n":
                    raise BenchError("no answer: " + " ".join(arguments))
                osd = self.cluster.settle()
                own = pid or client.pid
                opened = inside() if inside else None
                clocks = [time.monotonic_ns(), busy_ns(),
                          cpu_ns(client.pid) + self.cluster.osd_cpu_ns()]
                before = Sample.take(own)
                client.stdin.write("\n")
                client.stdin.flush()
                line = client.stdout.readline()
                after = Sample.take(own)
                clocks = [new - old for new, old in zip(
                    [time.monotonic_ns(), busy_ns(),
                     cpu_ns(client.pid) + self.cluster.osd_cpu_ns()],
                    clocks)]
                if not line:
                    raise BenchError("failed: " + " ".join(arguments))
                closed = inside() if inside else None
                osd = self.cluster.settle() - osd
                client.stdin.write("\n")
                client.stdin.flush()
                if client.wait() != 0:
                    raise BenchError("failed: " + " ".join(arguments))
        finally:
            client.stdin.close()
            client.stdout.close()
            stop_process(client)
        result = json.loads(line)
        ops = result["ops"]
        counted = before.until(after)
        result["server"] = counted
        # Of all cores, what neither OSD nor server nor client used.
        ours = clocks[2] + (counted["cpu_us"] * 1000 if pid else 0)
        result["others"] = max(0.0, (clocks[1] - ours)
                               / (clocks[0] * os.cpu_count()))
        result["cpu_per_op"] = counted["cpu_us"] / ops
        result["switches_per_op"] = counted["switches"] / ops
        result["osd_cpu_per_op"] = osd / 1000 / ops
        result["client_cpu_per_op"] = (
            0 if pid is None else
            (result["cpu_user_us"] + result["cpu_system_us"]) / ops)
        if pid is None:
            # The program's own account of itself must agree.
            own_cpu = result["cpu_user_us"] + result["cpu_system_us"]
            result["own_cpu_per_op"] = own_cpu / ops
        if inside:
            result["inside"] = [b - a for a, b in zip(opened, closed)]
        return result

    def load(self, workload, state, kind, **keywords):
        image = self.images[workload.source, state]
        preload = keywords.get("environment")
        if not kind.nbd:
            return self.gated(self.load_arguments(workload, state, kind,
                                                  image, None), **keywords)
        # Only who may write holds the lock and knows from the object map that
        # a clone has no objects, as librbd does.
        writable = workload.op == "write" or workload.clone
        keywords.pop("environment", None)
        with self.server(kind.name, image, writable, preload) as server:
            if state == "full" and kind.name != "null":
                command_output(["nbdinfo", "--map", server.uri])
            return self.gated(
                self.load_arguments(workload, state, kind, image,
                                    server.uri),
                pid=server.pid, **keywords)

    def applicable(self, workload, state):
        """The servers that take part in this comparison."""
        if not any(s.state == state for s in self.servers
                   if s.name.startswith("qemu-nbd-")) and state == "half":
            return []
        return [s for s in self.servers
                if s.state in ("", state)
                and (not s.writes_only or workload.op == "write")
                and (not s.small_only or workload.small)
                and (s.nbd or workload.connections == 1)]

    def run_round(self, number):
        self.round = number
        for workload in WORKLOADS:
            if not self.selected(workload.name):
                continue
            for state in STATES:
                kinds = self.applicable(workload, state)
                # Another one goes first in every round.
                turn = number % len(kinds) if kinds else 0
                for kind in kinds[turn:] + kinds[:turn]:
                    if (workload.op, state) == ("write", "half") \
                            and not self.options.quick:
                        self.restore_half()
                    result = self.load(workload, state, kind)
                    key = (workload.name, state, kind.name)
                    self.loads.setdefault(key, []).append(result)
                    say("round %d: %s, %s, %s: %.0f/s, %.1f us, %.2f sw" % (
                        number + 1, workload.name, state, kind.name,
                        result["iops"], result["cpu_per_op"],
                        result["switches_per_op"]))
        self.filters.run_round(number)
        for task in TASKS:
            if self.selected(task.name):
                self.run_task(task, number)

    def run_task(self, task, number):
        if task.name == "fill-new":
            self.run_fill(task, number)
            return
        name = task.name.partition("-")[2]
        image = self.images.get(("read", "full") if name == "full" else name)
        if image is None:
            return
        kinds = [k for k in task.kinds if not k.startswith("plugin")
                 or any(s.name == "plugin" for s in self.servers)]
        if image.format == 1:
            kinds = [k for k in kinds if "," not in k]
        if not any(s.name.startswith("qemu-nbd-") for s in self.servers):
            kinds = [k for k in kinds if k != "qemu-nbd"]
        if self.options.quick and name == "sparse":
            # It reads all of the 64 GiB, in ten seconds.
            kinds = [k for k in kinds if k != "rbd export"]
        turn = number % len(kinds) if kinds else 0
        for kind in kinds[turn:] + kinds[:turn]:
            osd = self.cluster.settle()
            if kind == "rbd export":
                result = self.timed_export(image)
            else:
                result = self.timed_client(task, image, kind)
            result["osd_cpu_s"] = (self.cluster.settle() - osd) / 1e9
            self.tasks.setdefault((task.name, kind), []).append(result)
            say("round %d: %s, %s: %.3f s" % (number + 1, task.name, kind,
                                              result["seconds"]))

    def run_fill(self, task, number):
        """Every server fills an image of its own that was just made."""
        size = self.options.image_size // 2
        source = os.path.join(self.folder, "random")
        if not os.path.exists(source):
            with open(source, "wb") as file:
                for _ in range(size // MIB):
                    file.write(os.urandom(MIB))
        kinds = [k for k in task.kinds if k == "rbd import" or any(
            s.name.startswith(k.partition(",")[0]) for s in self.servers)]
        if self.options.quick:
            kinds = [k for k in kinds if "," not in k]
        turn = number % len(kinds)
        for kind in kinds[turn:] + kinds[:turn]:
            if kind != "rbd import":
                image = create_image(self.cluster, "fill", size, 2)
            osd = self.cluster.settle()
            if kind == "rbd import":
                result = self.timed_rbd("import", source, f"{POOL}/fill")
            else:
                name, _, size_text = kind.partition(", ")
                server = "plugin" if name == "plugin" else "qemu-nbd-best"
                # What nbdcopy has in flight is 16 MiB a connection.
                request, threads = ((256 * KIB, None) if size_text
                                    else (MIB, 16))
                with self.server(server, image, True,
                                 threads=threads) as running:
                    before = cpu_ns(running.pid)
                    start = time.monotonic()
                    command_output(["nbdcopy", "--flush",
                                    f"--request-size={request}", source,
                                    running.uri], timeout=COPY_TIMEOUT)
                    result = {"seconds": time.monotonic() - start}
                    result["server_cpu_s"] = (cpu_ns(running.pid)
                                              - before) / 1e9
            result["osd_cpu_s"] = (self.cluster.settle() - osd) / 1e9
            self.cluster.rbd("rm", "--no-progress", f"{POOL}/fill")
            self.tasks.setdefault((task.name, kind), []).append(result)
            say("round %d: %s, %s: %.3f s" % (number + 1, task.name, kind,
                                              result["seconds"]))

    def timed_export(self, image):
        return self.timed_rbd("export", f"{POOL}/{image.name}", "-")

    def timed_rbd(self, command, *arguments):
        start = time.monotonic()
        with open(os.devnull, "wb") as null:
            process = subprocess.Popen(
                ["rbd", "-c", self.cluster.conf, command, "--no-progress",
                 *arguments], stdout=null,
                stderr=subprocess.PIPE, preexec_fn=die_with_parent)
            with Watchdog(process, COPY_TIMEOUT):
                error = process.stderr.read()
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            process.stderr.close()
        if process.returncode != 0:
            raise BenchError(f"rbd {command}: "
                             + error.decode(errors="replace"))
        return {"seconds": time.monotonic() - start,
                "server_cpu_s": usage.ru_utime + usage.ru_stime}

    def timed_client(self, task, image, kind):
        """A fresh server, one client command; for a map also once more."""
        server_kind, _, how = kind.partition(", ")
        if server_kind == "qemu-nbd":
            server_kind = "qemu-nbd-served"
        if how == "snapshot":
            image = Image(image.name + "@bench", image.size, image.format)
        with self.server(server_kind, image, how == "lock held") as server:
            before = cpu_ns(server.pid)
            start = time.monotonic()
            if task.name.startswith("nbdcopy"):
                command_output(["nbdcopy", server.uri, "null:"],
                               timeout=COPY_TIMEOUT)
                result = {"seconds": time.monotonic() - start}
            else:
                argv = ["nbdinfo", "--map", "--json", server.uri]
                text = command_output(argv, timeout=COPY_TIMEOUT)
                result = {"seconds": time.monotonic() - start}
                start = time.monotonic()
                command_output(argv, timeout=COPY_TIMEOUT)
                result["again"] = time.monotonic() - start
                extents = json.loads(text)
                result["extents"] = len(extents)
                result["data"] = sum(e["length"] for e in extents
                                     if e["type"] & 1 == 0)
                if sum(e["length"] for e in extents) != image.size:
                    raise BenchError(f"{kind}: the map of {image.name} "
                                     "does not cover the image")
            result["server_cpu_s"] = (cpu_ns(server.pid) - before) / 1e9
            return result

    # -- copies and profiles

    def count_copies(self):
        library = os.path.join(self.folder, "count-copies.so")
        command_output([os.environ.get("CC", "cc"), "-O2", "-fPIC",
                        "-shared", "-fno-builtin", "-o", library,
                        os.path.join(HERE, "count-copies.c"), "-ldl"])
        path = os.path.join(self.folder, "copies")
        with open(path, "w+b") as file:
            file.write(bytes(16))
            file.flush()
            counters = mmap.mmap(file.fileno(), 16)
        environment = {"LD_PRELOAD": library, "COUNT_COPIES_FILE": path,
                       "COUNT_COPIES_MIN": "512"}
        for workload in WORKLOADS:
            if workload.connections != 1 or not self.selected(workload.name):
                continue
            for kind in self.applicable(workload, "full"):
                result = self.load(
                    workload, "full", kind, environment=environment,
                    inside=lambda: struct.unpack("<QQ", counters[:]))
                self.copies[workload.name, kind.name] = (
                    result["inside"][1] / result["ops"])
                say("copies: %s, %s: %.0f bytes an operation" % (
                    workload.name, kind.name,
                    self.copies[workload.name, kind.name]))
        counters.close()

    def profile(self, workload_name):
        """Where the plugin spends its time in this workload."""
        if shutil.which("perf") is None:
            say("no profile: perf is not installed")
        elif any(w.name == workload_name for w in FILTER_WORKLOADS):
            self.filters.profile(workload_name)
        else:
            workload = next(w for w in WORKLOADS if w.name == workload_name)
            image = self.images[workload.source, "full"]
            kind = next(s for s in ALL_SERVERS if s.name == "plugin")
            with self.server("plugin", image, workload.op == "write"
                             or workload.clone) as server:
                self.profile_server(workload.label, server,
                                    self.load_arguments(
                                        workload, "full", kind, image,
                                        server.uri))

    def profile_server(self, label, server, arguments):
        """Profile a server while a load generator runs."""
        data = os.path.join(self.folder, "perf.data")
        perf = []

        def switch():
            if perf:
                perf[0].send_signal(signal.SIGINT)
                perf[0].wait()
            else:
                perf.append(subprocess.Popen(
                    ["perf", "record", "-q", "-F", "997", "-o", data,
                     "-p", str(server.pid)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    preexec_fn=die_with_parent))
                time.sleep(0.5)
            return ()
        try:
            self.gated(arguments, pid=server.pid, inside=switch)
        finally:
            for process in perf:
                stop_process(process)
        report = []
        for title, keys, limit in (("by library", "dso", 1),
                                   ("by function", "dso,symbol", 0.7)):
            try:
                text = command_output(
                    ["perf", "report", "-i", data, "--stdio",
                     "--no-children", "--sort", keys, "--percent-limit",
                     str(limit)])
            except BenchError as error:
                say(f"no profile: {error}")
                return
            # Some versions add two empty columns.
            rows = [re.sub(r"(\s+-)*\s*$", "", line)
                    for line in text.splitlines()
                    if line.strip() and not line.startswith("#")]
            report += [title, *rows[:25], ""]
        self.profiles.append((label, report[:-1]))


# --------------------------------------------------------------------------
# Report

def machine_facts(bench):
    """Versions and sizes; nothing that names this machine."""
    def version(argv, pattern=r"(\d+\.\d+(\.\d+)*)"):
        try:
            found = re.search(pattern, command_output(argv))
            return found.group(1) if found else "unknown"
        except BenchError:
            return "unknown"
    model = "unknown CPU"
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    system = "unknown"
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            found = re.search(r'^PRETTY_NAME="?([^"\n]*)', file.read(),
                              re.MULTILINE)
            system = found.group(1) if found else system
    except OSError:
        pass
    kernel = re.match(r"[\d.]*\d", os.uname().release)
    facts = [
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; OSD, server "
        "and client share them",
        f"{system}, Linux {kernel.group(0) if kernel else 'unknown'}",
        f"Ceph {version(['ceph', '--version'])}, "
        f"nbdkit {version(['nbdkit', '--version'])}, "
        f"qemu-nbd {version(['qemu-nbd', '--version'])}, "
        f"libnbd {version(['nbdinfo', '--version'])}",
        "one mon, one mgr, one OSD on BlueStore (a plain file), pool size 1, "
        "network: loopback",
    ]
    options = bench.options
    facts += [
        f"images of {options.image_size // MIB} MiB in objects of 4 MiB; "
        f"format {options.read_format} for reads, maps and copies, "
        f"format {options.write_format} for writes",
        f"{options.rounds} rounds of {options.seconds:g} s for each load; "
        f"nbdkit -t {options.threads}"
        + (", " + " ".join(options.plugin_option)
           if options.plugin_option else ""),
        f"date: {datetime.date.today().isoformat()}",
    ]
    return facts


class Report:
    def __init__(self, bench):
        self.bench = bench
        self.missed_workloads = []

    def value(self, workload, state, server, key):
        results = self.bench.loads.get((workload, state, server))
        return median(results, key) if results else None

    def qemu(self, workload, state, key):
        name = "qemu-nbd-served" if state == "half" else "qemu-nbd-best"
        return self.value(workload, state, name, key)

    def speed(self, workload, state, server):
        return self.value(workload, state, server, "iops")

    def against_qemu(self, workload, state, key):
        return ratio(self.value(workload, state, "plugin", key),
                     self.qemu(workload, state, key))

    def targets(self):
        """(text, wanted, measured, met or None, workload)"""
        rows = []

        def add(text, wanted, measured, at_least, workload, note=""):
            met = None
            if measured is not None:
                measured = round(measured, 2)  # as it is shown
                met = measured >= wanted if at_least else measured <= wanted
            rows.append((text, ("≥ " if at_least else "≤ ") + str(wanted),
                         number(measured) + (note if measured else ""),
                         met, workload))

        speed, cpu = "iops", "cpu_per_op"
        add("4 KiB random read, depth 32: IOPS, qemu-nbd as served", 3,
            self.against_qemu("read-4k-d32", "half", speed), True,
            "read-4k-d32")
        add("4 KiB random read, depth 32: IOPS, qemu-nbd at its best", 1.15,
            self.against_qemu("read-4k-d32", "full", speed), True,
            "read-4k-d32")
        add("4 KiB random read, depth 32: server CPU, qemu-nbd at its best",
            0.7, self.against_qemu("read-4k-d32", "full", cpu), False,
            "read-4k-d32")
        add("4 KiB random read, depth 1: IOPS, qemu-nbd at its best", 1.15,
            self.against_qemu("read-4k-d1", "full", speed), True,
            "read-4k-d1")
        for state, label in (("half", "as served"), ("full", "at its best")):
            add(f"4 KiB random write, depth 32: IOPS, qemu-nbd {label}",
                1.15, self.against_qemu("write-4k-d32", state, speed), True,
                "write-4k-d32")
            add("4 KiB random write, depth 32: server CPU, "
                f"qemu-nbd {label}",
                0.7, self.against_qemu("write-4k-d32", state, cpu), False,
                "write-4k-d32")
            add(f"4 KiB random write, depth 1: IOPS, qemu-nbd {label}", 1.1,
                self.against_qemu("write-4k-d1", state, speed), True,
                "write-4k-d1")
        for name in ("read-256k", "read-4m", "write-256k", "write-4m"):
            label = next(w.label for w in WORKLOADS if w.name == name)
            add(f"{label}: MB/s, qemu-nbd at its best", 1.05,
                self.against_qemu(name, "full", speed), True, name)
            add(f"{label}: OSD CPU, librbd (qemu-nbd)", 1.0,
                self.against_qemu(name, "full", "osd_cpu_per_op"), False,
                name)
        for name in ("read-4k-d1", "read-4k-d32", "write-4k-d1",
                     "write-4k-d32"):
            label = next(w.label for w in WORKLOADS if w.name == name)
            raw = self.value(name, "full", "raw", cpu)
            null = self.value(name, "full", "null", cpu)
            both = None if raw is None or null is None else raw + null
            add(f"{label}: server CPU, raw loop plus null plugin", 1.15,
                ratio(self.value(name, "full", "plugin", cpu), both), False,
                name)
        for name in ("read-4k-d32", "write-4k-d32"):
            label = next(w.label for w in WORKLOADS if w.name == name)
            add(f"{label}: context switches of the server per operation",
                1.2, self.value(name, "full", "plugin", "switches_per_op"),
                False, name)
        for state, label in (("half", "as served"), ("full", "at its best")):
            add("4 KiB random read through a parent, depth 32: IOPS, "
                f"qemu-nbd {label}", 1.3,
                self.against_qemu("clone-read-4k-d32", state, speed), True,
                "clone-read-4k-d32")
        for other in ("qemu-nbd", "rbd import"):
            key = ("fill-new", other), ("fill-new", "plugin")
            add(f"filling a new image: times faster than {other}", 1,
                ratio(median(self.bench.tasks[key[0]], "seconds"),
                      median(self.bench.tasks[key[1]], "seconds"))
                if all(k in self.bench.tasks for k in key) else None,
                True, None)
        copies = self.bench.tasks
        key = ("nbdcopy-sparse", "qemu-nbd"), ("nbdcopy-sparse", "plugin")
        faster = None
        if key[0] in copies and key[1] in copies:
            faster = ratio(median(copies[key[0]], "seconds"),
                           median(copies[key[1]], "seconds"))
        add("nbdcopy of a 64 GiB image with 2 MB of data: times faster than "
            "from qemu-nbd", 5, faster, True, None)
        for task, kind, most, text in (
                ("map-large", "plugin", 0.3,
                 "1 TiB with 2,000 blocks of 4 KiB, no lock held"),
                ("map-large", "plugin, lock held", 0.3,
                 "1 TiB with 2,000 blocks of 4 KiB, lock held"),
                ("map-plain", "plugin", 6, "the same without an object map"),
                ("map-plain", "plugin, snapshot", 0.5,
                 "a snapshot of it, without an object map"),
                ("map-huge", "plugin, lock held", 1,
                 "10 TiB, empty, lock held"),
                ("map-huge", "plugin, snapshot", 1,
                 "10 TiB, empty, snapshot")):
            add(f"nbdinfo --map of {text}: seconds", most,
                median(copies[task, kind], "seconds")
                if (task, kind) in copies else None, False, None)
        key = ("map-large", "qemu-nbd"), ("map-large", "plugin")
        add("nbdinfo --map of 1 TiB, no lock held: times faster than from "
            "qemu-nbd", 1,
            ratio(median(copies[key[0]], "seconds"),
                  median(copies[key[1]], "seconds"))
            if all(k in copies for k in key) else None, True, None)
        for text, wanted, measured, workload, note in (
                self.bench.filters.targets()):
            add(text, wanted, measured, True, workload, note)
        return rows

    def target_lines(self):
        yield ("| target (ratio, unless it says otherwise) | wanted | "
               "measured | |")
        yield "|---|---|---|---|"
        for text, wanted, measured, met, workload in self.targets():
            word = {None: "not measured", True: "met",
                    False: "**missed**"}[met]
            if met is False and workload not in (
                    None, *self.missed_workloads):
                self.missed_workloads.append(workload)
            yield f"| {text} | {wanted} | {measured} | {word} |"

    def load_lines(self):
        loads = self.bench.loads
        for workload in WORKLOADS:
            rows = []
            for state in STATES:
                for kind in ALL_SERVERS:
                    key = (workload.name, state, kind.name)
                    if key in loads:
                        rows.append(self.load_row(workload, state, kind))
            if not rows:
                continue
            unit = "IOPS" if workload.small else "MB/s"
            yield ""
            yield f"### {workload.label} (`{workload.name}`)"
            yield ""
            yield (f"| image | server | {unit} | spread | ÷ qemu-nbd | "
                   "÷ raw | p50 µs | p99 µs | server CPU µs/op | "
                   "switches/op | OSD CPU µs/op | client CPU µs/op | "
                   "copies |")
            yield "|---|---|" + "---:|" * 11
            yield from rows

    def load_row(self, workload, state, kind):
        results = self.bench.loads[workload.name, state, kind.name]
        speeds = sorted(r["iops"] for r in results)
        middle = statistics.median(speeds)
        spread = (speeds[-1] - speeds[0]) / middle / 2 * 100
        copied = self.bench.copies.get((workload.name, kind.name))
        copied = None if state != "full" or copied is None \
            else copied / workload.block
        shown = middle if workload.small else middle * workload.block / 1e6
        cells = [
            state, kind.label, number(shown),
            "±%.0f %%" % spread if len(speeds) > 1 else "–",
            *(number(None if kind.name == "null" else ratio(middle, base))
              for base in (self.qemu(workload.name, state, "iops"),
                           self.speed(workload.name, state, "raw"))),
            *(number(median(results, key), 1) for key in (
                "latency_us_p50", "latency_us_p99", "cpu_per_op")),
            number(median(results, "switches_per_op")),
            number(median(results, "osd_cpu_per_op"), 1),
            number(median(results, "client_cpu_per_op"), 1)
            if kind.nbd else "–",
            number(copied),
        ]
        return "| " + " | ".join(cells) + " |"

    def task_lines(self):
        tasks = self.bench.tasks
        if not tasks:
            return
        yield ("| what | server | s | ÷ qemu-nbd | s, asked again | "
               "server CPU s | OSD CPU s | extents | data bytes |")
        yield "|---|---|" + "---:|" * 7
        for task in TASKS:
            base = tasks.get((task.name, "qemu-nbd"))
            for kind in task.kinds:
                results = tasks.get((task.name, kind))
                if not results:
                    continue
                seconds = median(results, "seconds")
                cells = [task.label, kind, f"{seconds:.3f}",
                         number(ratio(seconds, base and
                                      median(base, "seconds")))]
                cells.append(f"{median(results, 'again'):.3f}"
                             if "again" in results[0] else "–")
                cells += [f"{median(results, 'server_cpu_s'):.2f}",
                          f"{median(results, 'osd_cpu_s'):.2f}"]
                cells += [f"{results[0][key]:,}" if key in results[0]
                          else "–" for key in ("extents", "data")]
                yield "| " + " | ".join(cells) + " |"

    def disturbance(self):
        others = [r["others"] for loads in (self.bench.loads,
                                            self.bench.filters.loads)
                  for results in loads.values() for r in results]
        if not others:
            return
        yield ("- other programs used %.0f %% of the cores while loads were "
               "measured (median; the most was %.0f %%)" % (
                   statistics.median(others) * 100, max(others) * 100))
        if statistics.median(others) > 0.1:
            yield ("- **the machine was not idle otherwise: do not judge by "
                   "these numbers**")

    def lines(self, idle):
        bench = self.bench
        yield "# Benchmark results"
        yield ""
        yield ("Made by `bench/run-bench.py` (`make bench`); "
               "[README.md](README.md) says how to repeat it and what each "
               "column means.  The ratios are what counts: the absolute "
               "numbers belong to one small machine on which OSD, server and "
               "client share the cores.")
        yield ""
        for fact in machine_facts(bench):
            yield "- " + fact
        yield f"- an idle OSD uses {idle / 1000:.1f} ms of CPU per second"
        yield from self.disturbance()
        if bench.options.quick:
            yield ("- **a quick run: it shows that everything works, and its "
                   "numbers mean nothing**")
        yield ""
        yield "## Targets"
        yield ""
        yield from self.target_lines()
        if bench.loads:
            yield ""
            yield "## Loads"
            yield ""
            yield ("Medians.  Image: " + "; ".join(
                f"*{name}* is {text}" for name, text in STATES.items())
                + ".  ÷ qemu-nbd compares speeds with qemu-nbd on the same "
                "image (*half* as served, *full* at its best).  Copies: "
                "bytes that the server copies in memory for each byte of "
                "the request, if they were counted.")
            yield from self.load_lines()
        if bench.filters.loads:
            yield ""
            yield "## Filters"
            yield ""
            yield ("Medians.  README.md says what is compared, and why in "
                   "this way.")
            yield from bench.filters.report_lines()
        if bench.tasks:
            yield ""
            yield "## Copying and mapping"
            yield ""
            yield ("Medians of seconds, with a fresh server each time; ÷ "
                   "qemu-nbd below 1 is faster.  `rbd export` and `rbd "
                   "import` are shown for comparison; their CPU is their "
                   "own.")
            yield ""
            yield from self.task_lines()
        if bench.profiles:
            yield ""
            yield "## Profiles of the workloads of missed targets"
            for label, rows in bench.profiles:
                yield ""
                yield f"### {label}"
                yield ""
                yield "```"
                yield from rows
                yield "```"


# --------------------------------------------------------------------------

def parse_size(text):
    found = re.fullmatch(r"(\d+)([kMGT]?)", text)
    if not found or int(found.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"not a size: {text}")
    return int(found.group(1)) << 10 * " kMGT".index(found.group(2) or " ")


def parse_options():
    names = [s.name for s in ALL_SERVERS]
    workloads = [w.name for w in (*WORKLOADS, *FILTER_WORKLOADS, *TASKS)]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="servers:   " + " ".join(names)
               + "\nworkloads: " + " ".join(workloads))
    parser.add_argument("--quick", action="store_true",
                        help="a smoke run of less than a minute")
    parser.add_argument("--rounds", type=int, metavar="N", help="default 5")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="of each measured load, default 3")
    parser.add_argument("--warmup", type=float, metavar="S",
                        help="before each measured load, default 0.7")
    parser.add_argument("--only", action="append", metavar="NAME",
                        help="only this workload; * matches anything; may be "
                             "repeated")
    parser.add_argument("--servers", default=",".join(names),
                        metavar="NAME,...", help="default: all")
    parser.add_argument("--format", type=int, choices=(1, 2),
                        help="RBD format of all images")
    parser.add_argument("--read-format", type=int, choices=(1, 2), default=2,
                        help="for reads, maps and copies, default 2")
    parser.add_argument("--write-format", type=int, choices=(1, 2),
                        default=2, help="for writes, default 2")
    parser.add_argument("--image-size", type=parse_size, metavar="SIZE",
                        help="of the filled images, default 1G")
    parser.add_argument("--threads", type=int, default=32, metavar="N",
                        help="nbdkit -t, default 32 (the largest depth)")
    parser.add_argument("--plugin-option", action="append", default=[],
                        metavar="KEY=VALUE",
                        help="one more parameter of the plugin")
    parser.add_argument("--count-copies", action="store_true",
                        help="one more pass that counts memory copies")
    parser.add_argument("--profile", action="store_true",
                        help="profile the plugin in the workloads of missed "
                             "targets (needs perf)")
    parser.add_argument("--output", metavar="FILE",
                        help="write the report there, as Markdown")
    parser.add_argument("--json", metavar="FILE",
                        help="write every single result there")
    parser.add_argument("--programs", metavar="DIR",
                        help="where raw-loop and nbd-load are")
    parser.add_argument("--run", default=None, metavar="FILE",
                        help="the build tree's ./run")
    parser.add_argument("--need-plugin", action="store_true",
                        help="fail if the plugin does not work, instead of "
                             "leaving it out")
    options = parser.parse_args()

    for name, normal, quick in (("rounds", 5, 1), ("seconds", 3.0, 0.15),
                                ("warmup", 0.7, 0.05),
                                ("image_size", GIB, 64 * MIB)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else normal)
    options.servers = options.servers.split(",")
    for name in options.servers:
        if name not in names:
            parser.error(f"--servers: {name} is none of {', '.join(names)}")
    if options.format:
        options.read_format = options.write_format = options.format
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds is at least 1 and --seconds more than 0")
    if options.image_size % (4 * MIB):
        parser.error("--image-size is a multiple of 4M")
    for pattern in options.only or ():
        if not any(re.fullmatch(pattern.replace("*", ".*"), w)
                   for w in workloads):
            parser.error(f"--only: {pattern} is none of "
                         + ", ".join(workloads))
    if options.run is None:
        places = [TOP, os.path.dirname(os.getcwd()), os.getcwd()]
        options.run = next(
            (path for path in (os.path.join(p, "run") for p in places)
             if os.access(path, os.X_OK)), os.path.join(TOP, "run"))
    return options


def main():
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    bench = Bench(options)
    try:
        bench.prepare()
        idle = bench.idle_osd()
        for number_of_round in range(options.rounds):
            bench.run_round(number_of_round)
        if options.count_copies:
            bench.count_copies()
        report = Report(bench)
        lines = list(report.lines(idle))
        if options.profile and report.missed_workloads:
            for name in report.missed_workloads:
                bench.profile(name)
            lines = list(report.lines(idle))
    finally:
        bench.close()
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({
                "loads": [{"workload": w, "state": s, "server": n,
                           "rounds": r}
                          for (w, s, n), r in bench.loads.items()],
                "filters": [{"workload": w, "variant": v, "rounds": r}
                            for (w, v), r in bench.filters.loads.items()],
                "tasks": [{"task": t, "server": k, "rounds": r}
                          for (t, k), r in bench.tasks.items()]}, file,
                      indent=1)


if __name__ == "__main__":
    try:
        main()
    except BenchError as failure:
        say(str(failure))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
