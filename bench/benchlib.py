# SPDX-License-Identifier: BSD-3-Clause
"""What the parts of the benchmark share: processes and their counters, the
cluster and its images, running servers, and numbers in reports."""

import ctypes
import json
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
import zlib
from dataclasses import dataclass


KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
OBJECT_SIZE = 4 * MIB
POOL = "rbd"
STEP_TIMEOUT = 120  # seconds for one step that should take a few
COPY_TIMEOUT = 900  # seconds for a copy of a whole image

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)


class BenchError(Exception):
    """Something that ends the benchmark, with a complete message."""


def say(text):
    print("run-bench: " + text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------
# Processes

def die_with_parent():
    """In the child: SIGKILL when this program ends, however it ends."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def command_output(argv, timeout=STEP_TIMEOUT, **keywords):
    """Standard output of a command that must succeed."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=timeout,
                              text=True, preexec_fn=die_with_parent,
                              check=False, **keywords)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{argv[0]}: no end within {timeout} s") from error
    except OSError as error:
        raise BenchError(f"{argv[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise BenchError(" ".join(argv[:4]) + " ...: exit status "
                         f"{done.returncode}: {done.stderr.strip()}")
    return done.stdout


def stop_process(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_ns(pid):
    """CPU time of a process in ns, user and system, with its ended threads.

    This is the process's CPU clock (clock_getcpuclockid(3); the number is
    Linux's encoding of CPUCLOCK_SCHED for a process).  /proc/PID/stat would
    count in ticks of 10 ms, /proc/PID/task/*/schedstat would lose threads
    that have ended.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError as error:
        raise BenchError(f"process {pid} has ended") from error


def busy_ns():
    """CPU time that anything on the machine has used so far, in ns, and what
    the hypervisor took (in ticks, so only for windows of some 0.1 s)."""
    with open("/proc/stat", encoding="ascii") as file:
        # user nice system idle iowait irq softirq steal (proc(5))
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ((sum(ticks) - ticks[3] - ticks[4])
            * 1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def switches(pid):
    """Context switches of each thread: {thread id: (voluntary, not)}."""
    result = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/status",
                      encoding="ascii", errors="replace") as status:
                text = status.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        numbers = re.findall(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)",
                             text, re.MULTILINE)
        if len(numbers) == 2:
            result[thread] = (int(numbers[0]), int(numbers[1]))
    return result


@dataclass
class Sample:
    """The counters of one process at one time."""
    cpu: int
    threads: dict

    @staticmethod
    def take(pid):
        return Sample(cpu_ns(pid), switches(pid))

    def until(self, later):
        """What happened from here to there, as a dictionary."""
        voluntary = involuntary = 0
        for thread, counts in later.threads.items():
            first = self.threads.get(thread, (0, 0))
            voluntary += counts[0] - first[0]
            involuntary += counts[1] - first[1]
        ended = len(self.threads.keys() - later.threads.keys())
        return {"cpu_us": (later.cpu - self.cpu) / 1000,
                "switches": voluntary + involuntary,
                "involuntary": involuntary,
                "threads": len(later.threads), "threads_ended": ended}


def find_processes(name, argument):
    """Ids of the running programs `name` with `argument` on their command
    line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                argv = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        if os.path.basename(argv[0]) == name and argument in argv:
            found.append(int(pid))
    return found


# --------------------------------------------------------------------------
# Cluster and images

class Cluster:
    """A mini-ceph with one OSD on BlueStore."""

    def __init__(self, folder, size):
        self.folder = folder
        self.mini_ceph = os.path.join(TOP, "tests", "mini-ceph")
        say("starting a Ceph cluster")
        try:
            self.conf = command_output(
                [self.mini_ceph, "start", folder, "--osds", "1",
                 "--store", "bluestore", "--size", str(size)]
            ).strip().splitlines()[-1]
        except BenchError:
            self.stop()
            raise
        self.osd_pids = find_processes("ceph-osd", self.conf)
        if not self.osd_pids:
            self.stop()
            raise BenchError("the OSD's process was not found")

    def stop(self):
        subprocess.run([self.mini_ceph, "stop", self.folder], check=False)
        # The folder goes away now, and what still ran then could be found
        # no more.
        conf = os.path.join(self.folder, "ceph.conf")
        for name in ("ceph-osd", "ceph-mgr", "ceph-mon"):
            for pid in find_processes(name, conf):
                say(f"mini-ceph left {name}, process {pid}: killing it")
                os.kill(pid, signal.SIGKILL)

    def rbd(self, *arguments):
        return command_output(["rbd", "-c", self.conf, *arguments])

    def osd_cpu_ns(self):
        try:
            return sum(cpu_ns(pid) for pid in self.osd_pids)
        except BenchError as error:
            raise BenchError("the OSD has ended:\n" + self.osd_log()) \
                from error

    def osd_log(self):
        """The end of what the OSD had to say; the folder will go away."""
        lines = []
        for name in ("osd.0.log", "osd.0.out"):
            try:
                with open(os.path.join(self.folder, "log", name),
                          encoding="utf-8", errors="replace") as file:
                    lines += file.readlines()[-20:]
            except OSError:
                pass
        return "".join(lines)

    def settle(self, limit=5.0):
        """Wait until the OSD has done what it was asked to do (deferred
        writes, compaction), at most `limit` seconds.  Return its CPU time."""
        end = time.monotonic() + limit
        last = self.osd_cpu_ns()
        while time.monotonic() < end:
            time.sleep(0.05)
            now = self.osd_cpu_ns()
            if now - last < 2_500_000:  # 5 % of a core
                return now
            last = now
        return last


@dataclass
class Image:
    name: str
    size: int
    format: int
    prefix: str = ""  # of its data objects

    @property
    def digits(self):
        return 12 if self.format == 1 else 16


def format1_header(prefix, size):
    """The header object of an RBD image of format 1 without snapshots
    (ceph: src/include/rbd_types.h, struct rbd_obj_header_ondisk)."""
    return struct.pack("<40s24s4s8sBBBxQQIIQ",
                       b"<<< Rados Block Device Image >>>\n",
                       prefix.encode(), b"RBD", b"001.005",
                       OBJECT_SIZE.bit_length() - 1, 0, 0, size, 0, 0, 0, 0)


def create_image(cluster, name, size, image_format, *options):
    image = Image(name, size, image_format)
    if image_format == 1:
        # "rbd create" refuses format 1 and reads it.
        image.prefix = "rb.0.%x.%08x" % (os.getpid(),
                                         zlib.crc32(name.encode()))
        with tempfile.NamedTemporaryFile() as file:
            file.write(format1_header(image.prefix, size))
            file.flush()
            command_output(["rados", "-c", cluster.conf, "-p", POOL, "put",
                            name + ".rbd", file.name])
    else:
        cluster.rbd("create", "--size", f"{size}B", "--object-size",
                    str(OBJECT_SIZE), *options, f"{POOL}/{name}")
    info = json.loads(cluster.rbd("info", "--format", "json",
                                  f"{POOL}/{name}"))
    if info["size"] != size or info["format"] != image_format:
        raise BenchError(f"{name}: rbd does not see the image as intended")
    image.prefix = info["block_name_prefix"]
    return image


# --------------------------------------------------------------------------
# Servers

class RunningServer:
    """A server process; a context manager that stops it.

    In `command` stand SOCKET and PID_FILE for where the server listens and
    for the file that it writes when it does.
    """

    def __init__(self, folder, command, environment=None):
        self.folder = tempfile.mkdtemp(dir=folder)
        self.socket = os.path.join(self.folder, "s")
        self.uri = "nbd+unix:///?socket=" + self.socket
        pid_file = os.path.join(self.folder, "pid")
        argv = [word.replace("SOCKET", self.socket)
                .replace("PID_FILE", pid_file) for word in command]
        self.log = open(os.path.join(self.folder, "log"), "w+b")
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, env={**os.environ, **(environment or {})},
            preexec_fn=die_with_parent)
        try:
            self.pid = self.wait_for_pid(argv, pid_file)
        except BaseException:
            self.stop()
            raise

    def wait_for_pid(self, argv, pid_file):
        # Both servers write the file when they accept connections.
        end = time.monotonic() + STEP_TIMEOUT
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with open(pid_file, encoding="ascii") as file:
                    text = file.read()
                if text.endswith("\n") and os.path.exists(self.socket):
                    return int(text)
            except FileNotFoundError:
                pass
            time.sleep(0.01)
        self.log.seek(0)
        raise BenchError("the server did not start: " + " ".join(argv)
                         + "\n" + self.log.read().decode(errors="replace"))

    def stop(self):
        stop_process(self.process)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Watchdog:
    """Kills a process that does not end in time, so that no read of its
    output waits for ever."""

    def __init__(self, process, seconds):
        self.process = process
        self.seconds = int(seconds) + 1

    def expired(self, *_):
        self.process.kill()
        raise BenchError(f"no end within {self.seconds} s: "
                         + " ".join(self.process.args[:3]) + " ...")

    def __enter__(self):
        self.old = signal.signal(signal.SIGALRM, self.expired)
        signal.alarm(self.seconds)

    def __exit__(self, *_):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.old)


# --------------------------------------------------------------------------
# Numbers

def median(results, key):
    return statistics.median(r[key] for r in results)


def number(value, digits=2):
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 100 else digits}f}"


def ratio(one, other):
    return None if one is None or not other else one / other
