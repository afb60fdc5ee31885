// SPDX-License-Identifier: BSD-3-Clause
//
// Runs a fuzzing target over files where there is no libFuzzer:
//
//     PROGRAM FILE|FOLDER...
//
// Folders are searched for files in all depths.  Arguments that begin with
// '-' are options of libFuzzer and are ignored.  Prints how many files were
// run.  Exit status: 0; 1 if a file cannot be read or there was none; a
// property that does not hold ends the program with SIGABRT, after the name
// of the file.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz-checks.hpp"

namespace {

namespace fs = std::filesystem;

// In one order on every machine.
std::vector<fs::path> files_in(const fs::path& path) {
  if (!fs::is_directory(path)) return {path};
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry :
       fs::recursive_directory_iterator(path))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

void run(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw std::runtime_error("cannot read " + file.string());
  // Of exactly that size, so that sanitizers see a read beyond its end.
  const auto copy = std::make_unique<std::uint8_t[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), copy.get());
  std::printf("%s\n", file.c_str());
  std::fflush(stdout);
  (void)LLVMFuzzerTestOneInput(copy.get(), bytes.size());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::size_t count = 0;
    for (int i = 1; i < argc; ++i) {
      if (std::string_view(argv[i]).starts_with('-')) continue;
      for (const fs::path& file : files_in(argv[i])) {
        run(file);
        ++count;
      }
    }
    std::printf("%zu inputs\n", count);
    return count == 0 ? 1 : 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[0], e.what());
    return 1;
  }
}
