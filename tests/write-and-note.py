#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes until the server dies, and notes what was acknowledged.

    write-and-note.py write URI FILE   write blocks in several threads; when
                                       the connection breaks, note in FILE
    write-and-note.py check FILE IMAGE ORIGINAL
                                       each block of IMAGE must hold the last
                                       acknowledged write or one that was under
                                       way; those never written to, what
                                       ORIGINAL (shorter is fine) holds
"""

import json
import random
import struct
import sys
import threading

BLOCK = 4096
THREADS = 4


def content(block, number):
    """Of a block after its write of that number; 0 means zeros."""
    if number == 0:
        return bytes(BLOCK)
    return struct.pack("<QQ", block + 1, number) * (BLOCK // 16)


def write(uri, file):
    import nbd
    notes = {}  # block: [acknowledged or None, under way or None]

    def work(index):
        random.seed(index)
        handle = nbd.NBD()
        handle.connect_uri(uri)
        blocks = handle.get_size() // BLOCK
        number = 0
        while True:
            # Runs of blocks, so that whole objects of 64 KiB are hit too.
            count = random.choice((1, 1, 1, 2, 16))
            first = random.randrange(blocks // count) * count
            mine = [b for b in range(first, first + count)
                    if b // 16 % THREADS == index]
            if len(mine) != count:
                continue
            number += 1
            zero = random.random() < 0.3
            new = 0 if zero else number
            for b in mine:
                notes.setdefault(b, [None, None])[1] = new
            try:
                if zero:
                    handle.zero(count * BLOCK, first * BLOCK)
                else:
                    handle.pwrite(b"".join(content(b, new) for b in mine),
                                  first * BLOCK)
            except nbd.Error:
                return
            for b in mine:
                notes[b] = [new, None]

    threads = [threading.Thread(target=work, args=(i,))
               for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open(file, "w", encoding="ascii") as out:
        json.dump(notes, out)
    print(f"{len(notes)} blocks, "
          f"{sum(n[1] is not None for n in notes.values())} under way")


def check(file, image, original):
    with open(file, encoding="ascii") as notes_file:
        notes = json.load(notes_file)
    if len(notes) < 20:
        sys.exit(f"only {len(notes)} blocks were written to")
    with open(image, "rb") as got, open(original, "rb") as before:
        block = 0
        while data := got.read(BLOCK):
            old = before.read(BLOCK)
            old += bytes(len(data) - len(old))
            acknowledged, under_way = notes.get(str(block), (None, None))
            allowed = [old if acknowledged is None
                       else content(block, acknowledged)]
            if under_way is not None:
                allowed.append(content(block, under_way))
            if data not in (a[:len(data)] for a in allowed):
                sys.exit(f"block {block}: neither write {acknowledged} nor "
                         f"{under_way}, but {data[:32].hex()}...")
            block += 1


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])
