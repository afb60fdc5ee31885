// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/format1.hpp"

#include <cerrno>
#include <cstdint>
#include <limits>
#include <unordered_set>

#include "rados/error.hpp"

namespace nbdrados {

namespace {

constexpr std::string_view what = "format 1 header";

constexpr std::string_view text = "<<< Rados Block Device Image >>>\n";
constexpr std::size_t text_size = 40;
constexpr std::size_t prefix_size = 24;
constexpr std::string_view signature{"RBD\0", 4};
constexpr std::string_view version{"001.005\0", 8};
// "001.00x": clients differ in what they write last and agree on the layout.
constexpr std::size_t version_fixed = 6;

constexpr std::uint64_t size_max =
    static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
// One snapshot: id and image size, and at least a character and its NUL.
constexpr std::size_t snapshot_size = 16;
constexpr std::size_t name_size_min = 2;

static_assert(format1_prefix_max + 1 == prefix_size);

[[noreturn]] void refuse(int code, const std::string& problem) {
  throw Error(code, std::string(what) + ": " + problem);
}

// The rules that bind a value wherever it comes from.
void verify(const Format1Header& header, int code) {
  if (header.object_prefix.empty()) refuse(code, "object prefix is empty");
  if (header.object_prefix.size() > format1_prefix_max)
    refuse(code, "object prefix " + in_quotes(header.object_prefix) +
                     " is longer than " + std::to_string(format1_prefix_max) +
                     " bytes");
  if (header.object_prefix.find('\0') != std::string::npos)
    refuse(code, "object prefix " + in_quotes(header.object_prefix) +
                     " has a NUL byte in it");
  if (header.order < format1_order_open_min ||
      header.order > format1_order_open_max)
    refuse(code, "order " + std::to_string(header.order) + " is not in [" +
                     std::to_string(format1_order_open_min) + ", " +
                     std::to_string(format1_order_open_max) + "]");
  if (header.size > size_max)
    refuse(code, "image size " + std::to_string(header.size) +
                     " is above 2^63 - 1");
  if (header.snap_seq >= snap_head)
    refuse(code, "snap_seq " + std::to_string(header.snap_seq) +
                     " is no snapshot id");

  std::unordered_set<std::string_view> names;
  names.reserve(header.snapshots.size());
  SnapId newer = 0;
  for (const Format1Snapshot& snap : header.snapshots) {
    const std::string which = "snapshot " + in_quotes(snap.name) + ": ";
    if (snap.name.empty())
      refuse(code, "snapshot " + std::to_string(snap.id) +
                       ": the name is empty");
    if (snap.name.find('\0') != std::string::npos)
      refuse(code, which + "the name has a NUL byte in it");
    if (!names.insert(snap.name).second)
      refuse(code, which + "the name occurs twice");
    if (snap.id == 0) refuse(code, which + "the id is 0");
    if (snap.id > header.snap_seq)
      refuse(code, which + "id " + std::to_string(snap.id) +
                       " is above snap_seq " +
                       std::to_string(header.snap_seq));
    if (newer != 0 && snap.id >= newer)
      refuse(code, which + "id " + std::to_string(snap.id) +
                       " is not below the one before it, " +
                       std::to_string(newer));
    if (snap.size > size_max)
      refuse(code, which + "image size " + std::to_string(snap.size) +
                       " is above 2^63 - 1");
    newer = snap.id;
  }
}

void append_padded(Encoder& out, std::string_view value, std::size_t width) {
  out.bytes(value);
  for (std::size_t i = value.size(); i < width; ++i) out.u8(0);
}

}  // namespace

SnapContext Format1Header::snap_context() const {
  SnapContext snapc;
  snapc.seq = snap_seq;
  snapc.snaps.reserve(snapshots.size());
  for (const Format1Snapshot& snap : snapshots) snapc.snaps.push_back(snap.id);
  return snapc;
}

namespace {

/// Text, object prefix, signature and version.  Returns the prefix.
std::string decode_names(Decoder& in) {
  // librbd and the Linux kernel compare the text with its NUL.
  const std::string_view raw_text = in.bytes(text_size, "text");
  if (!raw_text.starts_with(text) || raw_text[text.size()] != '\0')
    in.fail("text", "is " + in_quotes(raw_text) + ", not " + in_quotes(text));

  const std::string_view raw_prefix = in.bytes(prefix_size, "object prefix");
  const std::size_t prefix_end = raw_prefix.find('\0');
  if (prefix_end == std::string_view::npos)
    in.fail("object prefix", in_quotes(raw_prefix) + " has no end");

  const std::string_view raw_signature = in.bytes(4, "signature");
  if (raw_signature != signature)
    in.fail("signature", "is " + in_quotes(raw_signature) + ", not " +
                             in_quotes(signature.substr(0, 3)));
  const std::string_view raw_version = in.bytes(8, "version");
  if (raw_version.substr(0, version_fixed) !=
          version.substr(0, version_fixed) ||
      raw_version[6] < '0' || raw_version[6] > '9' || raw_version[7] != '\0')
    in.fail("version", "is " + in_quotes(raw_version) + ", not 001.00x");
  return std::string(raw_prefix.substr(0, prefix_end));
}

void decode_snapshots(Decoder& in, std::uint32_t snap_count,
                      std::uint64_t names_size, Format1Header& header) {
  if (snap_count > in.remaining() / (snapshot_size + name_size_min))
    in.fail("snap_count", std::to_string(snap_count) + " is more than " +
                              std::to_string(in.remaining()) +
                              " bytes can hold");
  const std::size_t table_size = snap_count * snapshot_size;
  if (names_size > in.remaining() - table_size)
    in.fail("snap_names_len",
            std::to_string(names_size) + " is more than the " +
                std::to_string(in.remaining() - table_size) + " bytes left");

  header.snapshots.resize(snap_count);
  for (Format1Snapshot& snap : header.snapshots) {
    snap.id = in.u64("snapshot id");
    snap.size = in.u64("snapshot image size");
  }
  std::string_view names =
      in.bytes(static_cast<std::size_t>(names_size), "snapshot names");
  for (Format1Snapshot& snap : header.snapshots) {
    const std::size_t end = names.find('\0');
    if (end == std::string_view::npos)
      in.fail("snapshot names", "end within the name of snapshot " +
                                    std::to_string(snap.id) + ", " +
                                    in_quotes(names));
    snap.name = names.substr(0, end);
    names.remove_prefix(end + 1);
  }
}

}  // namespace

Format1Header decode_format1(std::string_view bytes) {
  Decoder in(bytes, what);
  // Something else is the likely reason, so say that instead of "text needs
  // 40 bytes".
  if (bytes.size() < format1_header_size)
    refuse(EIO, "it needs at least " + std::to_string(format1_header_size) +
                    " bytes, the object has " + std::to_string(bytes.size()));

  Format1Header header;
  header.object_prefix = decode_names(in);
  header.order = in.u8("order");
  const unsigned encryption = in.u8("encryption");
  if (encryption != 0)
    in.fail("encryption", std::to_string(encryption) + " is not known");
  const unsigned compression = in.u8("compression");
  if (compression != 0)
    in.fail("compression", std::to_string(compression) + " is not known");
  static_cast<void>(in.u8("unused"));
  header.size = in.u64("image size");
  header.snap_seq = in.u64("snap_seq");
  const std::uint32_t snap_count = in.u32("snap_count");
  static_cast<void>(in.u32("reserved"));
  const std::uint64_t names_size = in.u64("snap_names_len");

  decode_snapshots(in, snap_count, names_size, header);
  verify(header, EIO);
  return header;
}

std::string encode_format1(const Format1Header& header) {
  verify(header, EINVAL);
  std::uint64_t names_size = 0;
  for (const Format1Snapshot& snap : header.snapshots)
    names_size += snap.name.size() + 1;
  if (header.snapshots.size() > std::numeric_limits<std::uint32_t>::max())
    refuse(EINVAL, "snap_count " + std::to_string(header.snapshots.size()) +
                       " is above 2^32 - 1");

  Encoder out;
  append_padded(out, text, text_size);
  append_padded(out, header.object_prefix, prefix_size);
  out.bytes(signature).bytes(version);
  out.u8(static_cast<std::uint8_t>(header.order));
  out.u8(0).u8(0).u8(0);  // encryption, compression, unused
  out.u64(header.size).u64(header.snap_seq);
  out.u32(static_cast<std::uint32_t>(header.snapshots.size()));
  out.u32(0);  // reserved
  out.u64(names_size);
  for (const Format1Snapshot& snap : header.snapshots)
    out.u64(snap.id).u64(snap.size);
  for (const Format1Snapshot& snap : header.snapshots)
    out.bytes(snap.name).u8(0);
  return out.take();
}

std::string encode_snap_add(std::string_view name, SnapId snap) {
  Encoder out;
  out.string(name).u64(snap);
  return out.take();
}

std::string encode_snap_remove(std::string_view name) {
  Encoder out;
  out.string(name);
  return out.take();
}

std::string format1_header_oid(std::string_view image) {
  std::string oid(image);
  oid += ".rbd";
  return oid;
}

}  // namespace nbdrados
