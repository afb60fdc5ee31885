// SPDX-License-Identifier: BSD-3-Clause

#include "rbd/watch_notify.hpp"

#include <array>
#include <cstddef>
#include <utility>

#include "rbd/encoding.hpp"

namespace nbdrados {

namespace {

// The version of messages that Ceph 16 sends; readers of any version take it.
constexpr std::uint8_t message_version = 7;
// Since these the lock messages say who, and request_lock says `force`.
constexpr unsigned version_client = 2;
constexpr unsigned version_force = 3;
// Since this one the messages about snapshots say of what kind they are.
constexpr std::uint8_t version_kind = 6;
constexpr std::uint32_t snapshot_of_user = 0;

constexpr std::array<std::string_view, 21> op_names = {
    "AcquiredLock",  "ReleasedLock",     "RequestLock",   "HeaderUpdate",
    "AsyncProgress", "AsyncComplete",    "Flatten",       "Resize",
    "SnapCreate",    "SnapRemove",       "RebuildObjectMap",
    "SnapRename",    "SnapProtect",      "SnapUnprotect", "Rename",
    "UpdateFeatures", "Migrate",         "Sparsify",      "Quiesce",
    "Unquiesce",     "MetadataUpdate"};

NotifyClient decode_client(Decoder& in) {
  NotifyClient client;
  client.gid = in.u64("client id");
  client.handle = in.u64("client handle");
  return client;
}

Encoder& put_op(Encoder& out, NotifyOp op) {
  return out.u32(static_cast<std::uint32_t>(op));
}

std::string encode_with_client(NotifyOp op, const NotifyClient& client) {
  Encoder out;
  out.frame(message_version, 1,
            [&] { put_op(out, op).u64(client.gid).u64(client.handle); });
  return out.take();
}

std::string encode_snapshot(NotifyOp op, std::string_view name) {
  Encoder out;
  out.frame(version_kind, 1, [&] {
    put_op(out, op).string(name);
    out.frame(1, 1, [&] { out.u32(snapshot_of_user); });
  });
  return out.take();
}

NotifyReplies::Watcher decode_watcher(Decoder& in) {
  NotifyReplies::Watcher watcher;
  watcher.gid = in.u64("watcher's client id");
  watcher.cookie = in.u64("watcher's cookie");
  return watcher;
}

}  // namespace

std::string to_string(NotifyOp op) {
  const auto number = static_cast<std::uint32_t>(op);
  if (number < op_names.size()) return std::string(op_names[number]);
  return "Unknown (" + std::to_string(number) + ")";
}

bool asks_lock_holder(NotifyOp op) noexcept {
  switch (op) {
    case NotifyOp::request_lock:
    case NotifyOp::flatten:
    case NotifyOp::resize:
    case NotifyOp::snap_create:
    case NotifyOp::snap_remove:
    case NotifyOp::rebuild_object_map:
    case NotifyOp::snap_rename:
    case NotifyOp::snap_protect:
    case NotifyOp::snap_unprotect:
    case NotifyOp::rename:
    case NotifyOp::update_features:
    case NotifyOp::migrate:
    case NotifyOp::sparsify:
    case NotifyOp::metadata_update:
      return true;
    case NotifyOp::acquired_lock:
    case NotifyOp::released_lock:
    case NotifyOp::header_update:
    case NotifyOp::async_progress:
    case NotifyOp::async_complete:
    case NotifyOp::quiesce:
    case NotifyOp::unquiesce:
      break;
  }
  return false;
}

NotifyMessage decode_notify(std::string_view payload) {
  Decoder outer(payload, "notification");
  Decoder in = outer.frame(1, "message");
  NotifyMessage message;
  message.op = static_cast<NotifyOp>(in.u32("operation"));
  switch (message.op) {
    case NotifyOp::acquired_lock:
    case NotifyOp::released_lock:
      if (in.version() >= version_client) message.client = decode_client(in);
      break;
    case NotifyOp::request_lock:
      if (in.version() >= version_client) message.client = decode_client(in);
      if (in.version() >= version_force) message.force = in.u8("force") != 0;
      break;
    default:
      break;
  }
  return message;
}

std::string encode_notify_header_update() {
  Encoder out;
  out.frame(message_version, 1,
            [&] { put_op(out, NotifyOp::header_update); });
  return out.take();
}

std::string encode_notify_acquired_lock(const NotifyClient& client) {
  return encode_with_client(NotifyOp::acquired_lock, client);
}

std::string encode_notify_released_lock(const NotifyClient& client) {
  return encode_with_client(NotifyOp::released_lock, client);
}

std::string encode_notify_request_lock(const NotifyClient& client,
                                       bool force) {
  Encoder out;
  out.frame(message_version, 1, [&] {
    put_op(out, NotifyOp::request_lock).u64(client.gid).u64(client.handle);
    out.u8(force ? 1 : 0);
  });
  return out.take();
}

std::string encode_notify_snap_create(std::string_view name) {
  return encode_snapshot(NotifyOp::snap_create, name);
}

std::string encode_notify_snap_remove(std::string_view name) {
  return encode_snapshot(NotifyOp::snap_remove, name);
}

std::string encode_notify_response(std::int32_t result) {
  Encoder out;
  out.frame(1, 1, [&] { out.u32(static_cast<std::uint32_t>(result)); });
  return out.take();
}

std::int32_t decode_notify_response(std::string_view bytes) {
  Decoder outer(bytes, "notification response");
  Decoder in = outer.frame(1, "response");
  return static_cast<std::int32_t>(in.u32("result"));
}

NotifyReplies decode_notify_replies(std::string_view bytes) {
  // Two numbers a watcher, and in an answer the length of the payload.
  constexpr std::size_t watcher_size = 16;
  constexpr std::size_t answer_size_min = watcher_size + 4;
  Decoder in(bytes, "notification replies");
  NotifyReplies out;
  std::size_t n = in.count(answer_size_min, "count of answers");
  out.answers.reserve(n);
  for (; n > 0; --n) {
    NotifyReplies::Answer answer;
    answer.watcher = decode_watcher(in);
    answer.payload = in.string("answer");
    out.answers.push_back(std::move(answer));
  }
  n = in.count(watcher_size, "count of timeouts");
  out.timeouts.reserve(n);
  for (; n > 0; --n) out.timeouts.push_back(decode_watcher(in));
  return out;
}

}  // namespace nbdrados
