#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The benchmark works from end to end: a quick run of bench/run-bench.py
# measures every workload with every server, and its report has all rows, with
# numbers in them.  The numbers themselves mean nothing here.

source "$(dirname "$0")/functions.sh" || exit 1

requires_program python3 qemu-nbd nbdkit nbdcopy nbdinfo rbd ceph-osd

bench_srcdir=$(cd "$tests_srcdir/../bench" && pwd)

# They are built on demand only.
make -s -C "$builddir/bench" raw-loop nbd-load replacement >"$tmp/make.log" 2>&1 || {
  cat "$tmp/make.log" >&2
  die "the load generators do not build"
}

# A load generator that does not compare would make the benchmark measure
# servers that return anything: what was written with one seed is not what
# another seed expects.
nbdkit -f -U "$tmp/memory.sock" -P "$tmp/memory.pid" memory 1M &
memory_pid=$!
own "$memory_pid"
wait_until 20 test -s "$tmp/memory.pid"
load=("$builddir/bench/nbd-load" --uri="nbd+unix:///?socket=$tmp/memory.sock"
      --verify --depth=8 --connections=2 --count=256 --pattern=sequential)
"${load[@]}" --op=write >/dev/null
result=$("${load[@]}" --op=read)
assert_match '"ops": 256,.*"bytes": 1048576,' "$result" "result of a read"
expect_fail 'wrong data at offset' "${load[@]}" --op=read --seed=2
# A mix has both, and compares what it reads, too.
result=$("${load[@]}" --op=mix --pattern=random --count=4096)
writes=$(sed -n 's/.*"writes": \([0-9]*\),.*/\1/p' <<<"$result")
if ((writes < 1100 || writes > 1360)); then
  die "30 % of 4096 requests should be writes: $result"
fi
expect_fail 'wrong data at offset' "${load[@]}" --op=mix --seed=2
stop_pid "$memory_pid"

# Nothing is expected of what the filter does not have.
filter_help=$("$builddir/run" nbdkit --filter=radoscache null --help)

python3 "$bench_srcdir/run-bench.py" --quick --need-plugin \
  --programs="$builddir/bench" --run="$builddir/run" \
  --output="$tmp/report.md" --json="$tmp/results.json" \
  >"$tmp/bench.out" 2>"$tmp/bench.err" || {
  tail -n 30 "$tmp/bench.err" >&2
  die "run-bench.py --quick"
}

# A row is there when it has a number above 0 in each column that was
# measured.
python3 - "$tmp/report.md" "$tmp/results.json" "$filter_help" \
  <<'CHECK' || die "the report"
import json
import re
import sys

report = open(sys.argv[1], encoding="utf-8").read()
results = json.load(open(sys.argv[2], encoding="utf-8"))
problems = []

sections = dict(re.findall(r"^### [^\n]* \(`([\w-]+)`\)\n(.*?)(?=^#|\Z)",
                           report, re.MULTILINE | re.DOTALL))
for op in ("read", "write"):
    for size in ("4k-d1", "4k-d32", "4k-d32-c4", "256k", "4m"):
        name = f"{op}-{size}"
        wanted = [("half", "plugin"), ("half", "qemu-nbd, as served"),
                  ("full", "plugin"), ("full", "qemu-nbd, at its best")]
        if op == "write":
            wanted.append(("full", "qemu-nbd, cache=writeback"))
        if not size.endswith("-c4"):
            wanted += [("half", "raw librados"), ("full", "raw librados")]
        if size.startswith("4k"):
            wanted.append(("full", "nbdkit null"))
        rows = [[cell.strip() for cell in line.strip("|").split("|")]
                for line in sections.get(name, "").splitlines()
                if re.match(r"\| (half|full) ", line)]
        for state, server in wanted:
            found = [row for row in rows if row[:2] == [state, server]]
            if len(found) != 1 or len(found[0]) != 13:
                problems.append(f"{name}: no row for {state}, {server}")
                continue
            # Speed, latencies, CPU of the server, switches.
            for column in (2, 6, 7, 8, 9):
                if not float(found[0][column]) > 0:
                    problems.append(f"{name}, {server}: {found[0]}")

for what, servers in (
        ("nbdcopy of the sparse image", ("plugin", "qemu-nbd")),
        ("nbdcopy of the full image", ("plugin", "qemu-nbd", "rbd export")),
        ("nbdinfo --map of the sparse image", ("plugin", "qemu-nbd"))):
    for server in servers:
        row = re.search(rf"^\| {what}[^|]*\| {server} \| ([\d.]+) \|", report,
                        re.MULTILINE)
        if not row or not float(row.group(1)) > 0:
            problems.append(f"no row for {what}, {server}")

write_back = "cache-dirty=" in sys.argv[3]
caches = ["no filter", "nbdkit's cache filter", "radoscache",
          "radoscache, write-back"]
for name, servers in (
        ("hits-4k-d32", ["no filter", "radoscache"]),
        ("hits-4k-d32-c4", ["no filter", "radoscache"]),
        ("write-4k-d32-c4", caches), ("mix-4k-d32-c4", caches),
        ("rados-write-4k-d32-c4", [caches[1], caches[3]]),
        ("rados-mix-4k-d32-c4",
         [caches[1], caches[1] + ", cache-on-read=true", caches[3]]),
        ("reread-4k-d1", ["no filter", "radoscache"]),
        ("reread-4k-d32", ["no filter", "radoscache"]),
        ("sequential-read-4k-d1",
         ["no filter", "radoscache", "radoscache, cache-readahead=0"]),
        ("sequential-write-4k-d1",
         ["no filter", "radoscache", "radoscache, write-back"])):
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in sections.get("filter-" + name, "").splitlines()]
    for server in servers:
        if server.endswith("write-back") and not write_back:
            continue
        found = [row for row in rows if row[0] == server]
        if len(found) != 1 or len(found[0]) != 10:
            problems.append(f"{name}: no row for {server}")
            continue
        # Speed, ratio, latencies, CPU of the server, switches, CPU of the
        # client.
        for column in (1, 3, 4, 5, 6, 7, 9):
            if not float(found[0][column]) > 0:
                problems.append(f"{name}, {server}: {found[0]}")

targets = re.findall(r"^\| (.*) \| [≥≤] ([\d.]+) \| .* "
                     r"\| (met|\*\*missed\*\*|not measured) \|$",
                     report, re.MULTILINE)
unmeasured = [text for text, _, word in targets if word == "not measured"
              and (write_back or "radoscache, write-back" not in text)]
if len(targets) < 35 or unmeasured:
    problems.append(f"targets: {len(targets)}, not measured: {unmeasured}")
wanted = sorted(float(number) for text, number, _ in targets
                if "radoscache" in text)
if wanted != [0.9, 0.9, 2, 2, 2, 2, 2, 2, 4, 5, 5, 5]:
    problems.append(f"targets of the filter: {wanted}")

for load in results["loads"] + results["filters"]:
    for result in load["rounds"]:
        if result["server"]["threads_ended"]:
            problems.append(f"{load['workload']}: threads ended while they "
                            "were measured")

print("\n".join(problems), file=sys.stderr)
sys.exit(1 if problems else 0)
CHECK

# The report is made to be committed: nothing in it names this machine.
for word in "$tmp" "$builddir" "$(uname -n)"; do
  ! grep -qF -- "$word" "$tmp/report.md" || die "the report has '$word' in it"
done
