#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Each filter of nbdkit above and below each of ours, under load.

For every filter that is installed the server runs with it above radosoffset,
above radoscache, below each of them (see CHAINS), over two exports where the
filter keeps exports apart.  Random requests against a model, sequential reads,
clients that go in the middle of requests, and a client that is still there
when the server is told to end: no wrong data, no hang, no end by a signal.

A filter that is not in FILTERS is tried without parameters, whatever its data;
the last line names it, and the status is 77.
"""

import argparse
import bz2
import concurrent.futures
import dataclasses
import gzip
import io
import lzma
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time

import nbd

HEAD = 64 << 10  # bytes before what clients see, and behind it
SIZE = 2 << 20  # bytes that they see
REQUEST = 64 << 10
PATIENCE = 20  # seconds

# In which order: F is the filter.  Those of ours that stand next to it differ,
# and so does the mode of the cache.
CHAINS = {
    "above radosoffset": ("F radosoffset radoscache", "writethrough"),
    "above radoscache": ("F radoscache radosoffset", "writeback"),
    "below radosoffset": ("radoscache radosoffset F", "writethrough"),
    "below radoscache": ("radosoffset radoscache F", "writeback"),
}
MORE_CHAINS = {
    "above radosoffset alone": ("F radosoffset", None),
    "above radosoffset, write-back": ("F radosoffset radoscache", "writeback"),
    "above radoscache, through": ("F radoscache radosoffset", "writethrough"),
    "below radosoffset alone": ("radosoffset F", None),
    "below radosoffset, write-back": ("radoscache radosoffset F",
                                      "writeback"),
    "below radoscache, through": ("radosoffset radoscache F", "writethrough"),
    "above, not cached": ("F radosoffset radoscache", "none"),
    "below, not cached": ("radosoffset radoscache F", "none"),
}


@dataclasses.dataclass
class Filter:
    """What is special about a filter of nbdkit."""
    parameters: str = ""  # {tmp}: a folder of its own
    # write: everything works.  read: the export is read-only.  same: what is
    # written may be what is there already.  any: the data are no matter.
    # fail: requests fail with EIO at times.
    load: str = "write"
    # The filter mixes exports, by design or by mistake, or works with one only.
    single: bool = False
    # A function that packs a disk for the filter (then there is one export),
    # and the program that it or the filter needs.
    pack: object = None
    program: str = ""
    # Filters that must stand above it, and below it.
    above: str = ""
    below: str = ""
    # It serves one client after the other; each new one costs much.
    serial: bool = False
    slow: bool = False
    # What it makes of the bytes below, which it undoes when it writes.
    view: object = bytes
    # What is written does not arrive below, or not all of it.
    lost: bool = False
    # Above ours it takes cache-mode= for its own.
    takes_mode: bool = False
    # The server ends by itself when its last client goes.
    ends: bool = False
    # The first request to an export must be a read.
    read_first: bool = False


def packed_by(*command):
    """Packs with a program: {i} and {o} are its files."""

    def pack(data, tmp):
        names = {"i": os.path.join(tmp, "plain"),
                 "o": os.path.join(tmp, "packed")}
        with open(names["i"], "wb") as f:
            f.write(data)
        subprocess.run([word.format(**names) for word in command],
                       check=True, stdout=subprocess.DEVNULL)
        with open(names["o"], "rb") as f:
            return f.read()

    return pack


def pack_ext2(data, tmp):
    folder = os.path.join(tmp, "root")
    os.makedirs(folder)
    with open(os.path.join(folder, "disk"), "wb") as f:
        f.write(data)
    image = os.path.join(tmp, "ext2")
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext2", "-d", folder, image,
                    "8M"], check=True,
                   env={**os.environ, "PATH": os.environ["PATH"] + ":/sbin"},
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(image, "rb") as f:
        return f.read()


def pack_tar(data, _tmp):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("disk")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def pack_mbr(data, _tmp):
    """One primary partition from sector 128 on."""
    first, count = 128, len(data) // 512
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0x83, b"\0\x02\0", first,
                        count)
    sector = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    return sector.ljust(first * 512, b"\0") + data


def swap_bytes(data):
    """What swab makes of it."""
    swapped = bytearray(data)
    swapped[0::2], swapped[1::2] = data[1::2], data[0::2]
    return bytes(swapped)


# Everything fails while there is that file.
FAILING = "error error-file={tmp}/fail error-rate=100%"

FILTERS = {
    "blocksize": Filter("minblock=512 maxdata=32K maxlen=64K"),
    "blocksize-policy": Filter(
        "blocksize-minimum=1 blocksize-preferred=8K blocksize-maximum=1M"),
    "bzip2": Filter(load="read", pack=lambda d, _: bz2.compress(d, 1)),
    # Below it is what was there before: for block status, and where it was told
    # to trim what it keeps.
    "cache": Filter(single=True, above="noextents", lost=True),
    "cacheextents": Filter(single=True),
    "checkwrite": Filter(load="same"),
    "count": Filter(),
    "cow": Filter(single=True, lost=True),
    "ddrescue": Filter("ddrescue-mapfile={tmp}/map", load="read"),
    "delay": Filter("rdelay=1ms wdelay=1ms"),
    "error": Filter("error-pread=EIO error-pread-rate=10%", load="fail"),
    "evil": Filter(load="any"),
    "exitlast": Filter(ends=True),
    "exitwhen": Filter("exit-when-file-created={tmp}/exit"),
    "exportname": Filter(),
    "ext2": Filter("ext2file=/disk", load="same", serial=True, pack=pack_ext2,
                   program="mke2fs"),
    "extentlist": Filter("extentlist={tmp}/extents"),
    "fua": Filter("fuamode=force"),
    "gzip": Filter(load="read", pack=lambda d, _: gzip.compress(d, 1)),
    "indexed-gzip": Filter("gzip-index-path={tmp}/index", load="read",
                           pack=lambda d, _: gzip.compress(d, 1)),
    "ip": Filter("allow=all"),
    "limit": Filter("limit=100"),
    "log": Filter("logfile={tmp}/log"),
    "luks": Filter("passphrase=secret", slow=True, program="qemu-img",
                   pack=packed_by(
        "qemu-img", "convert", "-f", "raw", "-O", "luks", "--object",
        "secret,id=s,data=secret", "-o", "key-secret=s,iter-time=10", "{i}",
        "{o}")),
    "lzip": Filter(load="read", slow=True, program="lzip", pack=packed_by(
        "lzip", "-0", "-b", "256KiB", "-o", "{o}", "{i}")),
    "map": Filter("map=0-2147483647:0"),
    "multi-conn": Filter("multi-conn-mode=emulate"),
    "nocache": Filter("cachemode=nop", takes_mode=True),  # 1.48 does
    "noextents": Filter(),
    "nofilter": Filter(),
    "noparallel": Filter(),
    "nozero": Filter("zeromode=emulate"),
    "offset": Filter(),  # who is above takes the parameters of radosoffset
    "openonce": Filter(single=True),
    "partition": Filter("partition=1", pack=pack_mbr),
    "pause": Filter("pause-control={tmp}/pause"),
    "protect": Filter("protect=0-", load="same"),
    # nbdkit 1.42.3 aborts in some first requests that are no read (1.48.1 does
    # not).
    "qcow2dec": Filter(load="read", read_first=True, program="qemu-img",
                       pack=packed_by("qemu-img", "convert", "-f", "raw", "-O",
                                      "qcow2", "{i}", "{o}")),
    "rate": Filter("rate=100G"),
    "readahead": Filter(),
    "readonly": Filter("readonly-file={tmp}/readonly"),
    # It tries a fast zero again that is refused: 1 + 2 + 4 + 8 + 16 seconds.
    "retry": Filter("retry-delay=1", above="nozero", below=FAILING),
    "retry-request": Filter("retry-request-delay=1", below=FAILING),
    "rotational": Filter(),
    "scan": Filter("scan-forever=true", single=True),  # the default export
    "spinning": Filter("min-seek-time=0.0001 half-seek-time=0.0002 "
                       "max-seek-time=0.0005"),
    "stats": Filter("statsfile={tmp}/stats"),
    "swab": Filter("swab-bits=16", above="blocksize minblock=2",
                   view=swap_bytes),
    "tar": Filter("tar-entry=disk", pack=pack_tar, program="tar"),
    "time-limit": Filter("time-limit=60"),
    "tls-fallback": Filter(load="any"),
    "truncate": Filter("round-up=1M"),
    "xor": Filter("xor=0x5a xorlen=1",
                  view=lambda d: bytes(b ^ 0x5a for b in d)),
    "xz": Filter(load="read", slow=True, program="xz", pack=packed_by(
        "sh", "-c", "xz -0 --block-size=256KiB --check=crc32 <{i} >{o}")),
}
UNKNOWN = Filter(load="any", lost=True)


SUDDEN = True  # clients go without a word


class Failure(Exception):
    """What a chain did that it should not."""


class Disk:
    """One export, and what it should hold."""

    def __init__(self, tmp, name, seed, view):
        self.name = name
        self.view = view
        self.file = os.path.join(tmp, "disks", name)
        self.model = os.path.join(tmp, name + ".model")
        self.junk = random.Random(seed).randbytes(HEAD)
        self.first = random.Random(seed + 1).randbytes(SIZE)
        with open(self.model, "wb") as f:
            f.write(view(self.first))

    def wanted(self):
        with open(self.model, "rb") as f:
            return f.read()


def call(text):
    """Runs what may fail with an NBD error; returns the errno or 0."""
    try:
        text()
    except nbd.Error as e:
        return e.errnum or -1
    return 0


class Server:
    """One nbdkit."""

    def __init__(self, command, tmp):
        self.socket = os.path.join(tmp, "s")
        pid = os.path.join(tmp, "pid")
        for name in (self.socket, pid):
            if os.path.exists(name):
                os.unlink(name)
        self.log = os.path.join(tmp, "log.txt")
        command = [*OPTIONS.nbdkit.split(), "-f", "-P", pid, "-U",
                   self.socket, *command]
        self.text = " ".join(command)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while not os.path.exists(pid) or os.path.getsize(pid) == 0:
            if self.process.poll() is not None:
                raise Failure("it does not start")
            if time.monotonic() > end:
                raise Failure("it is not ready in time")
            time.sleep(0.01)

    def uri(self, name=""):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def connect(self, name=""):
        h = nbd.NBD()
        h.set_strict_mode(0)
        h.set_request_block_size(False)
        h.connect_uri(self.uri(name))
        return h

    def wait(self):
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failure("it does not end") from None
        if status != 0:
            raise Failure(f"it ends with status {status}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.wait()

    def kill(self):
        """Ends it, however it behaves."""
        if self.process.poll() is None:
            # What is killed leaves a lock, and the next server cannot open.
            self.process.terminate()
            try:
                self.process.wait(PATIENCE / 4)
                return
            except subprocess.TimeoutExpired:
                pass
            self.process.kill()
            self.process.wait()


def read_through(h, disk, load):
    """Reads one piece after the other."""
    wanted = disk.wanted()
    for at in range(0, SIZE, REQUEST):
        data = []
        error = call(lambda: data.append(h.pread(REQUEST, at)))
        if load == "any" or error != 0 and load == "fail":
            continue
        if error != 0:
            raise Failure(f"a read at {at} fails: {os.strerror(error)}")
        if data[0] != wanted[at:at + REQUEST]:
            raise Failure(f"wrong data at {at} of {disk.name}")


def leave_in_the_middle(server, disk, writing):
    """A client that goes without waiting for answers."""
    wanted = disk.wanted()
    h = server.connect(disk.name)
    buffers = []
    size = h.get_size()
    for at in range(0, min(size, 16 * REQUEST), REQUEST):
        buffers.append(nbd.Buffer(REQUEST))
        call(lambda: h.aio_pread(buffers[-1], at))
        if writing:
            buffers.append(nbd.Buffer.from_bytearray(
                bytearray(wanted[at:at + REQUEST])))
            call(lambda: h.aio_pwrite(buffers[-1], at))
        if at % (4 * REQUEST) == 0:
            call(lambda: h.poll(0))
    if SUDDEN:
        del h  # closes the socket
        return
    call(lambda: h.aio_disconnect(0))
    while not h.aio_is_closed() and not h.aio_is_dead():
        if call(lambda: h.poll(PATIENCE * 1000)):
            break


def bears_sudden_ends(backend):
    """Whether nbdkit, without any filter, bears clients that go so.  (1.32.5
    does not: server/connections.c, raw_send_socket, aborts.)"""
    global SUDDEN
    SUDDEN = True
    disks, _ = backend.make(Filter(single=True), False)
    for _ in range(3):
        server = Server(["memory", str(4 << 20)], backend.tmp)
        try:
            for _ in range(20):
                leave_in_the_middle(server, disks[0], False)
            time.sleep(0.05)
            if server.process.poll() is not None:
                return False
        except nbd.Error:
            return False
        finally:
            server.kill()
    return True


def random_requests(server, disks, slow):
    """Sends random requests to all exports."""
    clients = []
    try:
        for disk in disks:
            words = ["--ops", "150", "--threads", "2", "--connections", "2",
                     "--batch", "3", "--max-length", "64K", "--reconnect",
                     "15", "--model", disk.model, server.uri(disk.name)]
            if slow:
                words += ["--ops", "40", "--connections", "1", "--reconnect",
                          "0"]
            clients.append(subprocess.Popen(
                [OPTIONS.random_ops, *words], stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True))
        for client in clients:
            _, text = client.communicate(timeout=3 * PATIENCE)
            if client.returncode != 0:
                raise Failure(f"random requests: {text}")
    except subprocess.TimeoutExpired:
        raise Failure("random requests do not end") from None
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
                client.wait()


def write_the_same(server, disk, load):
    """What is written is there already."""
    h = server.connect(disk.name)
    wanted = disk.wanted()
    for at in range(0, SIZE, 4 * REQUEST):
        error = call(lambda: h.pwrite(wanted[at:at + REQUEST], at))
        if error and load == "same":
            raise Failure(f"a write at {at} fails: {os.strerror(error)}")
    h.shutdown()


def flush(server, disk):
    """What filters keep until then arrives."""
    h = server.connect(disk.name)
    if h.can_flush() and (error := call(h.flush)):
        raise Failure(f"flush: {os.strerror(error)}")
    h.shutdown()


def put(server, disks, filt, tmp):
    """All kinds of load, one after the other."""
    load = filt.load
    held = None
    if not filt.serial:
        # Lest exitlast ends the server between two clients.
        held = server.connect(disks[0].name)
        if filt.read_first:
            held.pread(1, 0)
    if load in ("write", "read"):
        random_requests(server, disks, filt.slow)
    if load in ("same", "any"):
        write_the_same(server, disks[0], load)
    # Retry begins anew while requests of others are under way.
    failing = None
    if filt.below == FAILING:
        fail = os.path.join(tmp, "fail")
        with open(fail, "wb"):
            pass
        failing = threading.Timer(0.3, os.unlink, (fail,))
        failing.start()
    for disk in disks:
        h = server.connect(disk.name)
        read_through(h, disk, load)
        h.shutdown()
        for _ in range(2):
            leave_in_the_middle(server, disk,
                                load in ("write", "same", "fail"))
    if failing is not None:
        failing.join()
    if load in ("write", "same"):
        for disk in disks:
            flush(server, disk)
    if held is None:
        held = server.connect(disks[0].name)
    # Filters make requests of their own (readahead) while the server ends.
    for at in range(0, 16 * REQUEST, REQUEST):
        call(lambda: held.pread(REQUEST, at))
    if not filt.ends:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    del held


class Files:
    """Exports of nbdkit's file plugin."""

    def __init__(self, tmp):
        self.tmp = tmp

    def make(self, filt, below):
        """Returns the exports, and the parameters of radosoffset."""
        shutil.rmtree(self.tmp, ignore_errors=True)
        os.makedirs(os.path.join(self.tmp, "disks"))
        self.single = filt.single or filt.pack is not None
        names = ["one"] if self.single else ["one", "two"]
        self.disks = [Disk(self.tmp, name, i, filt.view)
                      for i, name in enumerate(names)]
        length = SIZE
        for d in self.disks:
            data = d.first
            if filt.pack is not None:
                data = filt.pack(d.junk + data if below else data, self.tmp)
                if not below:
                    length = len(data)
            with open(d.file, "wb") as f:
                if filt.pack is None or not below:
                    f.write(d.junk)
                f.write(data)
                if filt.pack is None:
                    f.write(d.junk)
        if self.single:
            self.disks[0].name = ""
        with open(os.path.join(self.tmp, "map"), "w") as f:
            f.write("# 0x0 0x1000000 +\n0x00000000 + 1\n"
                    "0x00000000 0x01000000 +\n")
        with open(os.path.join(self.tmp, "extents"), "w") as f:
            f.write("0 1G\n")
        return self.disks, [f"offset={HEAD}", f"range={length}"]

    def plugin(self):
        if self.single:
            return ["file", self.disks[0].file]
        return ["file", f"dir={self.tmp}/disks"]

    def check(self, filt, name, below):
        """After the server's end: what has arrived, and nothing else."""
        if filt.lost or filt.load in ("any", "fail"):
            return
        for d in self.disks:
            if filt.pack is not None:
                # Not with filters of ours.
                words = ["-r", f"--filter={name}"]
                parameters = filt.parameters.format(tmp=self.tmp).split()
                if not below:
                    words.append("--filter=offset")
                    parameters.append(f"offset={HEAD}")
                server = Server([*words, *self.plugin(), *parameters],
                                self.tmp)
                try:
                    h = server.connect()
                    start = HEAD if below else 0
                    data = b"".join(h.pread(REQUEST, start + at)
                                    for at in range(0, SIZE, REQUEST))
                    h.shutdown()
                finally:
                    server.kill()
                if data != d.wanted():
                    raise Failure("what was written did not arrive")
                continue
            with open(d.file, "rb") as f:
                data = f.read()
            if filt.view(data[HEAD:HEAD + SIZE]) != d.wanted():
                raise Failure(f"what was written to {d.name} did not arrive")
            rest = data[HEAD + SIZE:]
            if data[:HEAD] != d.junk or rest[:HEAD] != d.junk or \
                    any(rest[HEAD:]):
                raise Failure(f"something else was written to {d.name}")


class Images:
    """Exports of the plugin rados."""

    def __init__(self, tmp, plugin, names):
        self.tmp = tmp
        self.words = plugin
        self.disks = []
        os.makedirs(tmp)
        for i, name in enumerate(names):
            d = Disk(tmp, name, i, bytes)
            self.disks.append(d)
        self.filled = False

    def make(self, filt, _below):
        if not self.filled:
            server = Server(self.words, self.tmp)
            try:
                for d in self.disks:
                    h = server.connect(d.name)
                    h.pwrite(d.junk + d.wanted() + d.junk, 0)
                    h.shutdown()
                server.stop()
            finally:
                server.kill()
        # Otherwise the images are not what the models say.
        self.filled = not filt.lost
        self.used = self.disks[:1] if filt.single else self.disks
        with open(os.path.join(self.tmp, "extents"), "w") as f:
            f.write("0 1G\n")
        return self.used, [f"offset={HEAD}", f"range={SIZE}"]

    def plugin(self):
        return self.words

    def check(self, filt, _name, _below):
        if filt.lost:
            return
        server = Server(["-r", *self.words], self.tmp)
        try:
            for d in self.used:
                h = server.connect(d.name)
                data = h.pread(h.get_size(), 0)
                h.shutdown()
                if data != d.junk + d.wanted() + d.junk:
                    raise Failure(f"what was written to {d.name} did not "
                                  "arrive, or something else did")
            # Killed, it could leave a watch, for whose answer the next server
            # waits at each hand-over until the OSD gives it up.
            server.stop()
        finally:
            server.kill()


def command_of(filters, filt, name, window, mode, backend):
    """The command line of a chain."""
    words = []
    parameters = []

    def add(text):
        parts = text.format(tmp=backend.tmp).split()
        if parts:
            words.append(f"--filter={parts[0]}")
            parameters.extend(parts[1:])

    for f in filters:
        if f == "F":
            add(filt.above)
            add(f"{name} {filt.parameters}")
            add(filt.below)
        else:
            words.append(f"--filter={f}")
    if "radosoffset" in filters:
        parameters += window
    if "radoscache" in filters:
        if filters[-1] == "F" or not filt.takes_mode:
            parameters.append(f"cache-mode={mode}")
        if not OPTIONS.rados:
            parameters += ["cache-assume=exclusive", "cache-exports=distinct"]
    return [*words, *backend.plugin(), *parameters]


def try_chain(name, chain, backend):
    """Returns what is wrong, or nothing."""
    filt = FILTERS.get(name, UNKNOWN)
    filters, mode = ALL_CHAINS[chain]
    filters = filters.split()
    below = filters[-1] == "F"
    began = time.monotonic()
    server = None
    text = log = ""
    try:
        disks, window = backend.make(filt, below)
        command = command_of(filters, filt, name, window, mode, backend)
        text = " ".join(command)
        server = Server(command, backend.tmp)
        try:
            put(server, disks, filt, backend.tmp)
        except nbd.Error:
            # Some have another size, or no such name.
            if filt.load != "any" or server.process.poll() is not None:
                raise
            server.process.send_signal(signal.SIGTERM)
        server.wait()
        backend.check(filt, name, below)
    except (Failure, nbd.Error, OSError, subprocess.SubprocessError) as e:
        path = os.path.join(backend.tmp, "log.txt")
        if os.path.exists(path):
            with open(path, errors="replace") as f:
                log = "".join(f.readlines()[-8:])
        if isinstance(e, nbd.Error) and server is not None:
            # A client sees no more of a crash.
            time.sleep(0.2)
            if (status := server.process.poll()) is not None:
                log += f"(the server has ended with status {status})\n"
        return f"{name} {chain}: {e}\n  nbdkit {text}\n{log}"
    finally:
        if server is not None:
            server.kill()
        if OPTIONS.verbose:
            print(f"{time.monotonic() - began:6.2f} {name} {chain}",
                  flush=True)
    return None


def installed():
    """The names of nbdkit's own filters."""
    text = subprocess.run(["nbdkit", "--dump-config"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    folder = dict(line.split("=", 1)
                  for line in text.splitlines())["filterdir"]
    names = [f[len("nbdkit-"):-len("-filter.so")]
             for f in os.listdir(folder) if f.endswith("-filter.so")]
    return sorted(n for n in names if not n.startswith("rados"))


def main():
    """Tries what it was asked for."""
    names = OPTIONS.filters.split(",") if OPTIONS.filters else installed()
    without = {n: FILTERS[n].program for n in names if n in FILTERS and
               FILTERS[n].program and
               not shutil.which(FILTERS[n].program,
                                path=os.environ["PATH"] + ":/sbin")}
    if os.environ.get("NBDRADOS_REPORTS"):
        # nbdkit unloads it while its thread runs, which the search for leaks
        # makes run once more.
        without["pause"] = "a build without sanitizers"
    tries = [(n, c) for n in names if n not in without for c in CHAINS]
    if OPTIONS.all:
        tries += [(n, c) for n in names if n not in without
                  for c in MORE_CHAINS]
    if OPTIONS.rados:
        backends = [Images(os.path.join(OPTIONS.tmp, "rados"),
                           OPTIONS.rados.split(),
                           OPTIONS.exports.split(","))]
    else:
        backends = [Files(os.path.join(OPTIONS.tmp, f"files{i}"))
                    for i in range(OPTIONS.jobs)]
    global SUDDEN
    SUDDEN = bears_sudden_ends(backends[0])
    if not SUDDEN:
        print("this nbdkit, without any filter, aborts when a client goes in "
              "the middle of requests: clients say that they go")
    lock = threading.Lock()

    def one(name, chain):
        with lock:
            backend = backends.pop()
        try:
            return try_chain(name, chain, backend)
        finally:
            with lock:
                backends.append(backend)

    with concurrent.futures.ThreadPoolExecutor(len(backends)) as pool:
        found = [f for f in pool.map(lambda t: one(*t), tries) if f]
    for text in found:
        print(text, file=sys.stderr)
    print(f"{len(tries)} servers, {len(found)} of them wrong")
    for name, program in without.items():
        print(f"not tried: {name}, which needs {program}")
    unknown = [n for n in names if n not in FILTERS]
    if found:
        return 1
    if unknown or not tries:
        print("SKIP: what these filters do to data is not in FILTERS of "
              f"filter-matrix.py: {' '.join(unknown)}")
        return 77
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nbdkit", required=True, help="command")
    parser.add_argument("--random-ops", required=True, help="nbd-random-ops")
    parser.add_argument("--tmp", required=True, help="a folder")
    parser.add_argument("--filters", help="only these: NAME,...")
    parser.add_argument("--all", action="store_true", help="more chains")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rados", help="plugin and parameters, not files")
    parser.add_argument("--exports", help="NAME,... for --rados")
    parser.add_argument("--verbose", action="store_true")
    OPTIONS = parser.parse_args()
    ALL_CHAINS = {**CHAINS, **MORE_CHAINS}
    sys.exit(main())
