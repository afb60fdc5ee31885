// SPDX-License-Identifier: BSD-3-Clause

#include "copy/source_snapshot.hpp"

#include <array>
#include <cstdio>
#include <ctime>
#include <random>
#include <string_view>
#include <utility>

#include "rados/error.hpp"

namespace nbdrados::copy {

namespace {

constexpr std::string_view prefix = "radoscopy-";

/// No other copy has it, on whatever machine; people see how old it is.
std::string new_name() {
  std::time_t now = std::time(nullptr);
  struct tm utc = {};
  (void)::gmtime_r(&now, &utc);
  std::array<char, 32> when{};
  (void)std::strftime(when.data(), when.size(), "%Y%m%dT%H%M%SZ", &utc);
  std::array<char, 16> unique{};
  std::random_device random;
  (void)std::snprintf(unique.data(), unique.size(), "%08x",
                      static_cast<unsigned>(random()));
  return std::string(prefix) + when.data() + "-" + unique.data();
}

}  // namespace

SourceSnapshot::SourceSnapshot(const std::shared_ptr<Cluster>& cluster,
                               const ImageIdentity& image,
                               const ImageSpec& spec, Log log)
    : spec_(spec),
      log_(std::move(log)),
      snapshots_(cluster, image, spec,
                 [this](const std::string& line) { log_(line, true); }),
      name_(new_name()) {
  try {
    name_others();
    id_ = snapshots_.create(name_);
  } catch (const Error& e) {
    throw Error(e.code(), std::string("no snapshot of it can be made: ") +
                              e.what() +
                              "; --no-snapshot copies it without one, while "
                              "it may change");
  }
  log_(spec_.text() + "@" + name_ + " is copied, and then removed", false);
}

void SourceSnapshot::name_others() const {
  for (const Snapshots::Entry& each : snapshots_.list()) {
    if (!each.name.starts_with(prefix)) continue;
    const std::string full = spec_.text() + "@" + each.name;
    log_(full +
             ": the snapshot of another copy, which runs or was killed; then "
             "`rbd snap rm " +
             (each.in_trash ? "--snap-id " + std::to_string(each.id) + " " +
                                  spec_.text()
                            : full) +
             "` removes it",
         true);
  }
}

void SourceSnapshot::remove() {
  try {
    snapshots_.remove(id_, name_);
  } catch (const Error& e) {
    throw Error(e.code(), spec_.text() + "@" + name_ +
                              " is left, which `rbd snap rm --snap-id " +
                              std::to_string(id_) + " " + spec_.text() +
                              "` removes: " + e.what());
  }
}

}  // namespace nbdrados::copy
