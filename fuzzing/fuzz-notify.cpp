// SPDX-License-Identifier: BSD-3-Clause
//
// The first byte of the input chooses what the rest is: a notification of
// librbd, an answer to one, or the reply of a RADOS notification.

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz-checks.hpp"
#include "rbd/encoding.hpp"
#include "rbd/watch_notify.hpp"

using namespace nbdrados;
using namespace nbdrados::fuzzing;

namespace {

void check_message(std::string_view in) {
  const NotifyMessage message = decode_notify(in);
  require(!to_string(message.op).empty(), "each operation has a name");
  require(!message.force || message.op == NotifyOp::request_lock,
          "only request_lock has force");
  if (!message.client) return;
  std::string again;
  switch (message.op) {
    case NotifyOp::acquired_lock:
      again = encode_notify_acquired_lock(*message.client);
      break;
    case NotifyOp::released_lock:
      again = encode_notify_released_lock(*message.client);
      break;
    case NotifyOp::request_lock:
      again = encode_notify_request_lock(*message.client, message.force);
      break;
    default:
      require(false, "only lock messages have a client");
  }
  require(decode_notify(again) == message, "decode(encode(x)) == x");
}

void check_response(std::string_view in) {
  const std::int32_t result = decode_notify_response(in);
  require(decode_notify_response(encode_notify_response(result)) == result,
          "decode(encode(x)) == x");
}

void check_replies(std::string_view in) {
  const NotifyReplies replies = decode_notify_replies(in);
  Encoder out;
  out.u32(static_cast<std::uint32_t>(replies.answers.size()));
  for (const NotifyReplies::Answer& answer : replies.answers)
    out.u64(answer.watcher.gid).u64(answer.watcher.cookie).string(
        answer.payload);
  out.u32(static_cast<std::uint32_t>(replies.timeouts.size()));
  for (const NotifyReplies::Watcher& watcher : replies.timeouts)
    out.u64(watcher.gid).u64(watcher.cookie);
  require(in.starts_with(out.str()), "encode(decode(x)) starts x");
}

struct Target {
  const char* name;
  void (*run)(std::string_view in);
};

// New ones go to the end: the corpus knows these by number.
const Target targets[] = {
    {"notification: ", check_message},
    {"notification response: ", check_response},
    {"notification replies: ", check_replies},
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  if (size == 0) return 0;
  const Target& target = targets[data[0] % 3];
  try {
    target.run(text(data + 1, size - 1));
  } catch (const Error& e) {
    check_refusal(e, EIO, target.name);
  }
  return 0;
}
