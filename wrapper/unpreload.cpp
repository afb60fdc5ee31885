// SPDX-License-Identifier: BSD-3-Clause
//
// Preloaded into a server after the runtime of a sanitizer: keeps the runtime
// out of the server's children.  There it reports the leaks of programs that
// are not ours, and under libtsan the shell does not even start.
//
// Other ways do worse.  The shell of --run is started before its command could
// clear the variable; and with ld.so --preload the sanitizers take the
// loader for the program, which breaks the stacks that suppressions look at.

#include <cstdlib>

namespace {

[[gnu::constructor]] void unpreload() { unsetenv("LD_PRELOAD"); }

}  // namespace
