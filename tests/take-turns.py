#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Several servers of one image write to it in turn.

    take-turns.py [--adopt] [--steps N] [--turn N] [--seed N] [--size BYTES] SERVER...

A SERVER is KIND=URI.  KIND is what it does:
    writer    writes and is looked at
    librbd    writes; its own block status is not of interest
    reader    is looked at

After each write, zero or trim by one of them all others are asked for block
status, of everything and of one extent, and must call nothing a hole that
holds data; and now and then they must read what has been written.  Ends with
status 1 at the first that does not.
"""

import argparse
import random
import sys

import nbd

BLOCK = 4096


def content(number):
    """Of a block; 0 means zeros.  No other has a byte of zero."""
    if number == 0:
        return bytes(BLOCK)
    return bytes(1 + number // 255**k % 255 for k in range(4)) * (BLOCK // 4)


def number_of(block):
    if block == bytes(BLOCK):
        return 0
    return sum((block[k] - 1) * 255**k for k in range(4))


class Server:
    def __init__(self, text):
        self.kind, uri = text.split("=", 1)
        self.name = f"{self.kind} {uri}"
        self.nbd = nbd.NBD()
        self.nbd.add_meta_context("base:allocation")
        self.nbd.connect_uri(uri)
        self.writes = self.kind in ("writer", "librbd")
        self.answers = self.kind in ("writer", "reader")

    def holes(self, offset, length, flags=0):
        """The holes in a reply, as (start, end); and where the reply ends."""
        holes = []
        at = offset

        def extent(_context, _offset, entries, _error):
            nonlocal at
            for n, kind in zip(entries[::2], entries[1::2]):
                if kind & nbd.STATE_ZERO:
                    holes.append((at, at + n))
                at += n

        self.nbd.block_status(length, offset, extent, flags)
        return holes, at


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--turn", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=16 << 20)
    parser.add_argument("--adopt", action="store_true",
                        help="begin with what the image has")
    parser.add_argument("servers", nargs="+", type=Server)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    blocks = args.size // BLOCK
    # The number in each block, 0 for zeros.
    model = [0] * blocks
    filled = bytearray(blocks)  # 1 where the number is not 0
    holes_seen = 0

    def adopt(server, first, count):
        held = bytes(server.nbd.pread(count * BLOCK, first * BLOCK))
        for i in range(count):
            model[first + i] = number_of(held[i * BLOCK:(i + 1) * BLOCK])
            filled[first + i] = 1 if model[first + i] else 0

    if args.adopt:
        for n in range(0, blocks, 256):
            adopt(args.servers[0], n, min(256, blocks - n))

    def check(server, step):
        nonlocal holes_seen
        answers = []
        at = 0
        while at < args.size:
            holes, at = server.holes(at, args.size - at)
            answers += holes
        for _ in range(3):
            offset = rng.randrange(blocks) * BLOCK
            answers += server.holes(offset, args.size - offset,
                                    nbd.CMD_FLAG_REQ_ONE)[0]
        for start, end in answers:
            first, last = start // BLOCK, -(-end // BLOCK)
            # A hole may begin or end within a block that holds zeros there.
            if filled.count(1, first, last) != 0:
                n = filled.index(1, first, last)
                sys.exit(f"step {step}, {server.name}: a hole from {start} to "
                         f"{end}, with data at {n * BLOCK}")
            holes_seen += 1
        n = rng.randrange(blocks)
        if bytes(server.nbd.pread(BLOCK, n * BLOCK)) != content(model[n]):
            sys.exit(f"step {step}, {server.name}: wrong data at {n * BLOCK}")

    writers = [s for s in args.servers if s.writes]
    lookers = [s for s in args.servers if s.answers]
    writer = writers[0]
    turn = 0
    for step in range(1, args.steps + 1):
        if turn == 0:
            writer = rng.choice(writers)
            turn = rng.randrange(1, args.turn)
        turn -= 1
        first = rng.randrange(blocks)
        count = min(rng.choice((1, 1, 1, 2, 16, 64, 300)), blocks - first)
        what = rng.randrange(10)
        if what < 6:
            number = step
            writer.nbd.pwrite(content(step) * count, first * BLOCK)
        elif what < 8:
            number = 0
            writer.nbd.zero(count * BLOCK, first * BLOCK)
        else:
            # A trim may leave what it does not free.
            writer.nbd.trim(count * BLOCK, first * BLOCK)
            adopt(writer, first, count)
            number = None
        if number is not None:
            model[first:first + count] = [number] * count
            filled[first:first + count] = bytes([1 if number else 0]) * count
        # Those who have not written, in another order each time.  The writer
        # itself too, now and then: it is what keeps most.
        for server in rng.sample(lookers, len(lookers)):
            if server is not writer or step % 3 == 0:
                check(server, step)
    for server in args.servers:
        for n in range(0, blocks, 256):
            want = b"".join(map(content, model[n:n + 256]))
            if bytes(server.nbd.pread(len(want), n * BLOCK)) != want:
                sys.exit(f"{server.name}: wrong data in the end, at or after "
                         f"{n * BLOCK}")
    if holes_seen < args.steps:
        sys.exit("too few holes were reported: this tests nothing")
    print(f"{args.steps} steps, {holes_seen} holes, seed {args.seed}")


if __name__ == "__main__":
    main()
