// SPDX-License-Identifier: BSD-3-Clause
//
// Preloaded into a server after the runtime of a sanitizer: keeps the runtime
// out of the server's children.  There it reports the leaks of programs that
// are not ours, and under libtsan the shell does not even start.
//
// Other ways do worse.  The shell of --run is started before its command could
// clear the variable; and with ld.so --preload the sanitizers take the
// loader for the program, which breaks the stacks that suppressions look at.

#include <string_view>

namespace {

// Runs before the constructor of the C library (see Makefile.am), so there is
// no environ and no unsetenv yet.  The GNU C library gives the arguments of
// main to constructors.
[[gnu::constructor]] void unpreload(int /* argc */, char** /* argv */,
                                    char** environment) {
  char** kept = environment;
  for (char** entry = environment; *entry != nullptr; ++entry)
    if (!std::string_view(*entry).starts_with("LD_PRELOAD=")) *kept++ = *entry;
  *kept = nullptr;
}

}  // namespace
