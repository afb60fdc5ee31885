// SPDX-License-Identifier: BSD-3-Clause
//
// The first byte of the input says whether structured replies were negotiated
// and in what pieces the rest comes, which is what a server sends for four
// requests.

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <span>

#include "copy/nbd/reply_parser.hpp"
#include "fuzz-checks.hpp"

using namespace nbdrados;
using namespace nbdrados::copy::nbd;
using namespace nbdrados::fuzzing;

namespace {

struct Asked {
  Command command;
  std::uint64_t offset;
  std::uint32_t length;
  std::uint64_t got = 0;
};
using Requests = std::map<std::uint64_t, Asked>;

void check(const ReplyParser& parser, const Event& event, Requests& requests) {
  const auto found = requests.find(event.cookie);
  require(found != requests.end(), "only open requests are told of");
  Asked& asked = found->second;
  switch (event.kind) {
    case Event::Kind::payload:
      require(parser.payload_left() == event.length, "payload follows");
      [[fallthrough]];
    case Event::Kind::hole:
      require(asked.command == Command::read, "a read gets data");
      require(event.length != 0 && event.offset >= asked.offset &&
                  event.offset - asked.offset <= asked.length &&
                  event.length <= asked.length - (event.offset - asked.offset),
              "data are within the request");
      asked.got += event.length;
      require(asked.got <= asked.length, "data come once");
      break;
    case Event::Kind::status:
      require(asked.command == Command::block_status && asked.got == 0,
              "block status comes once, where it was asked for");
      require(!parser.status().empty(), "block status has an extent");
      asked.got = 1;
      break;
    case Event::Kind::finished:
      require(event.error >= 0, "an errno is positive");
      require(event.error != 0 || asked.command != Command::read ||
                  asked.got == asked.length,
              "a read that succeeds is complete");
      requests.erase(found);
      require(parser.in_flight() == requests.size(), "the rest is open");
  }
}

void run(bool structured, std::size_t most, std::span<const char> bytes) {
  ReplyParser parser(structured);
  Requests requests;
  for (const Asked& asked :
       {Asked{Command::read, 4096, 8}, Asked{Command::read, 0, 65536},
        Asked{Command::write, 512, 512},
        Asked{Command::block_status, 0, 1 << 20}})
    requests[parser.begin(asked.command, asked.offset, asked.length)] = asked;
  while (!bytes.empty()) {
    std::size_t n = 0;
    if (parser.payload_left() != 0) {
      require(parser.wanted() == 0, "nothing is wanted while payload comes");
      n = std::min<std::size_t>({bytes.size(), parser.payload_left(), most});
      parser.moved(static_cast<std::uint32_t>(n));
    } else {
      const std::size_t wanted = parser.wanted();
      require(wanted != 0, "something is wanted");
      std::span<const char> piece =
          bytes.first(std::min({bytes.size(), wanted, most}));
      n = piece.size();
      while (!piece.empty()) {
        require(parser.payload_left() == 0, "no payload is in what is wanted");
        piece = piece.subspan(parser.feed(piece));
        while (const auto event = parser.next())
          check(parser, *event, requests);
      }
    }
    while (const auto event = parser.next()) check(parser, *event, requests);
    bytes = bytes.subspan(n);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  if (size == 0) return 0;
  try {
    run((data[0] & 1) != 0, 1 + (data[0] >> 1), text(data + 1, size - 1));
  } catch (const Error& e) {
    check_refusal(e, EPROTO, "the NBD server breaks the protocol: ");
  }
  return 0;
}
