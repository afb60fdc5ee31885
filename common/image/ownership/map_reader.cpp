// SPDX-License-Identifier: BSD-3-Clause

#include "image/ownership/map_reader.hpp"

#include <cerrno>
#include <utility>

#include "image/ownership/map_loader.hpp"
#include "rados/error.hpp"
#include "rbd/features.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

/// Longer than any map that there can be.
constexpr std::uint64_t longest_map = object_map_max / 4 + (1 << 20);

}  // namespace

MapReader::MapReader(ObjectStore& store, std::string header_oid,
                     std::string map_oid, SnapId snap,
                     std::chrono::milliseconds limit)
    : store_(store),
      header_oid_(std::move(header_oid)),
      map_oid_(std::move(map_oid)),
      snap_(encode_snap_id(snap)),
      limit_(limit) {}

void MapReader::check_header(Pending& asked) {
  check(asked.wait_for(limit_), "cannot read header object " + header_oid_);
}

bool MapReader::exists(Pending& asked) {
  const int r = asked.wait_for(limit_);
  if (r == -ENOENT) return false;
  check(r, "cannot read object map " + map_oid_);
  return true;
}

std::unique_ptr<Pending> MapReader::ask_flags(std::string* output) {
  return store_.exec(header_oid_, rbd_class, "get_flags", snap_, output);
}

bool MapReader::is_valid(Pending& asked, const std::string& output) {
  check_header(asked);
  return (decode_get_flags(output) & flag_object_map_invalid) == 0;
}

bool MapReader::valid() {
  std::string output;
  const auto asked = ask_flags(&output);
  return is_valid(*asked, output);
}

bool MapReader::ask_versions(Kept& now, std::uint64_t& size) {
  const auto header = store_.version(header_oid_, &now.header);
  const auto map = store_.version(map_oid_, &now.map);
  const auto length = store_.stat(map_oid_, &size, snap_head);
  // Whatever becomes of one of them.
  for (Pending* asked : {header.get(), map.get(), length.get()})
    (void)asked->wait_for(limit_);
  check_header(*header);
  return exists(*map) && exists(*length);
}

bool MapReader::unchanged(const Kept& last) {
  Kept now;
  std::string flags;
  now.footer.resize(last.footer.size());
  const MutablePiece piece{now.footer.data(), now.footer.size()};
  const auto header = store_.version(header_oid_, &now.header);
  const auto valid = ask_flags(&flags);
  const auto map = store_.version(map_oid_, &now.map);
  const auto footer =
      store_.read(map_oid_, last.footer_at, {&piece, 1}, snap_head);
  // All at once, and whatever becomes of one of them.
  for (Pending* asked : {header.get(), valid.get(), map.get(), footer.get()})
    (void)asked->wait_for(limit_);
  check_header(*header);
  // What is shorter now, is another footer.
  return is_valid(*valid, flags) && exists(*map) && exists(*footer) &&
         now.header == last.header && now.map == last.map &&
         now.footer == last.footer;
}

void MapReader::forget() {
  const std::scoped_lock lock(mutex_);
  kept_ = {};
}

std::shared_ptr<const ObjectStates> MapReader::read() {
  Kept last;
  {
    const std::scoped_lock lock(mutex_);
    last = kept_;
  }
  if (last.states && unchanged(last)) return last.states;

  // The versions from before: what changes meanwhile is only read once more.
  // No more is asked for than there is: a user may have set a bound on the
  // bytes in flight (objecter_inflight_op_bytes), against which all that a
  // read may bring counts.  (0 would be all.)
  Kept now;
  std::uint64_t size = 0;
  if (!ask_versions(now, size) || size == 0 || size > longest_map || !valid())
    return nullptr;
  LoadedMap map;
  try {
    map = load_object_map(store_, map_oid_, limit_, size);
  } catch (const Error& e) {
    // Without it, it only takes longer.
    if (e.code() == ENOENT || e.code() == EINVAL) return nullptr;
    throw;
  }
  // Valid before and after, so in between: making an invalid map valid takes a
  // pass over all objects.
  if (!valid()) return nullptr;
  now.states = std::make_shared<const ObjectStates>(std::move(map.states));
  // Without checksums nothing proves that it is the same map next time.
  if (map.footer.empty()) return now.states;
  now.footer_at = map.footer_at;
  now.footer = std::move(map.footer);
  const std::scoped_lock lock(mutex_);
  kept_ = now;
  return now.states;
}

}  // namespace nbdrados
