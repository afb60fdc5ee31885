// SPDX-License-Identifier: BSD-3-Clause
//
// Sends chosen requests to an NBD server, over one connection, and ends with
// status 1 and a message at the first answer that is not the wanted one.
// For shell tests: "nbd-expect URI step ARGUMENTS , step ARGUMENTS , ...".
// --help lists the steps.
//
// libnbd's own checks are switched off, so that wrong requests reach the
// server.

#include <libnbd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using u64 = std::uint64_t;
using Words = std::vector<std::string>;

constexpr const char* help_text =
    "nbd-expect URI STEP [, STEP]...\n"
    "OFFSET and LENGTH take a suffix K, M, G, T; an OFFSET of 'end' is the\n"
    "size of the image, also as end-N and end+N.  BYTE is a number.\n"
    "RESULT is ok or an errno's name, or several with | in between.\n"
    "FLAG is fua, no-hole, fast-zero, req-one, df.\n"
    "  connect RESULT          must be the first step, if it is used; RESULT\n"
    "                          is ok or fail\n"
    "  size LENGTH             of the image\n"
    "  flag NAME yes|no        NAME: read-only, rotational, fua, flush, zero,\n"
    "                          fast-zero, trim, cache, multi-conn, df,\n"
    "                          block-status, structured\n"
    "  block-size WHICH N      WHICH: minimum, preferred, maximum\n"
    "  description REGEX       of the export; also: name REGEX\n"
    "  read OFFSET LENGTH RESULT\n"
    "  read-is OFFSET LENGTH BYTE\n"
    "  write OFFSET LENGTH BYTE RESULT [FLAG...]\n"
    "  zero OFFSET LENGTH RESULT [FLAG...]      also: trim, cache\n"
    "  flush RESULT\n"
    "  status OFFSET LENGTH RESULT [FLAG...]    block status\n"
    "  extents OFFSET LENGTH TEXT [FLAG...]     the same; the answer is TEXT,\n"
    "                          LENGTH:TYPE,... with TYPE data, zero, hole\n"
    "                          (hole and zero) or hole-only\n"
    "  within SECONDS          every later request must be answered in this\n"
    "                          time, and as the first step the connection\n"
    "                          made (default 60)\n"
    "  run COMMAND             by the shell; must succeed\n"
    "  until SECONDS STEP...   repeats the step until it is as wanted\n"
    "nbd-expect --list URI     prints NAME<TAB>DESCRIPTION of each export\n";

/// The answer is not the wanted one.
class Unexpected : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

const std::pair<const char*, int> errno_names[] = {
    {"ok", 0},           {"EPERM", EPERM},         {"EIO", EIO},
    {"ENOMEM", ENOMEM},  {"EINVAL", EINVAL},       {"ENOSPC", ENOSPC},
    {"EROFS", EROFS},    {"EOVERFLOW", EOVERFLOW}, {"ENOTSUP", ENOTSUP},
    {"ENOENT", ENOENT},  {"ESHUTDOWN", ESHUTDOWN}, {"ETIMEDOUT", ETIMEDOUT},
    {"ENOTCONN", ENOTCONN}};

std::string errno_name(int code) {
  for (const auto& [name, value] : errno_names)
    if (value == code) return name;
  return "errno " + std::to_string(code);
}

u64 plain_number(std::string_view text) {
  u64 value = 0;
  const char* end = text.data() + text.size();
  auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc{} && stop + 1 == end) {
    const char* units = "KMGT";
    if (const char* unit = std::strchr(units, *stop); unit != nullptr) {
      value <<= 10 * (unit - units + 1);
      stop++;
    }
  }
  if (error != std::errc{} || stop != end)
    throw std::invalid_argument("'" + std::string(text) + "' is no number");
  return value;
}

struct CloseHandle {
  void operator()(nbd_handle* h) const noexcept { nbd_close(h); }
};
using Handle = std::unique_ptr<nbd_handle, CloseHandle>;

Handle make_handle() {
  Handle h(nbd_create());
  if (!h) throw std::runtime_error(nbd_get_error());
  nbd_set_uri_allow_local_file(h.get(), true);
  nbd_set_strict_mode(h.get(), 0);
  nbd_set_full_info(h.get(), true);
  nbd_add_meta_context(h.get(), LIBNBD_CONTEXT_BASE_ALLOCATION);
  return h;
}

class Client {
 public:
  explicit Client(std::string uri) : uri_(std::move(uri)) {}

  void step(const Words& words) {
    const std::string& verb = words.at(0);
    if (verb == "connect") return connect_step(words);
    if (verb == "within") {
      limit_ = std::chrono::seconds(plain_number(words.at(1)));
      return;
    }
    connect();
    if (verb == "size")
      same("size", std::to_string(plain_number(words.at(1))),
           std::to_string(nbd_get_size(get())));
    else if (verb == "flag")
      flag(words);
    else if (verb == "block-size")
      block_size(words);
    else if (verb == "description")
      matches(verb, words.at(1), take(nbd_get_export_description(get())));
    else if (verb == "name")
      matches(verb, words.at(1), take(nbd_get_canonical_export_name(get())));
    else if (verb == "run")
      run(words.at(1));
    else if (verb == "until")
      until(words);
    else
      request(words);
  }

  void finish() {
    if (h_) nbd_shutdown(get(), 0);
  }

 private:
  [[nodiscard]] nbd_handle* get() const noexcept { return h_.get(); }

  /// Milliseconds until `end`, for poll.  Throws when there are none.
  static int remaining(std::chrono::steady_clock::time_point end,
                       const std::string& what) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (left.count() <= 0) throw Unexpected(what + ": no answer in time");
    return static_cast<int>(left.count());
  }

  static std::string take(char* text) {
    if (text == nullptr) return "";
    std::string copy = text;
    std::free(text);
    return copy;
  }

  void connect() {
    if (h_) return;
    h_ = make_handle();
    const auto end = std::chrono::steady_clock::now() + limit_;
    bool good = nbd_aio_connect_uri(get(), uri_.c_str()) == 0;
    while (good && nbd_aio_is_connecting(get()) == 1)
      good = nbd_poll(get(), remaining(end, "connect")) != -1;
    if (!good || nbd_aio_is_ready(get()) != 1)
      throw Unexpected(std::string("connect: ") +
                       (good ? "the server closed it" : nbd_get_error()));
  }

  void connect_step(const Words& words) {
    const bool wanted = words.at(1) == "ok";
    std::string error;
    try {
      connect();
    } catch (const Unexpected& e) {
      error = e.what();
      h_.reset();
    }
    if (wanted && !error.empty()) throw Unexpected(error);
    if (!wanted && error.empty())
      throw Unexpected("connect: succeeded, and should not");
  }

  static void same(const std::string& what, const std::string& wanted,
                   const std::string& got) {
    if (wanted != got)
      throw Unexpected(what + ": wanted " + wanted + ", got " + got);
  }

  static void matches(const std::string& what, const std::string& regex,
                      const std::string& got) {
    if (!std::regex_search(got, std::regex(regex, std::regex::extended)))
      throw Unexpected(what + ": '" + got + "' does not match '" + regex + "'");
  }

  void flag(const Words& words) {
    const std::string& name = words.at(1);
    const std::pair<const char*, int (*)(nbd_handle*)> flags[] = {
        {"read-only", nbd_is_read_only},
        {"rotational", nbd_is_rotational},
        {"fua", nbd_can_fua},
        {"flush", nbd_can_flush},
        {"zero", nbd_can_zero},
        {"fast-zero", nbd_can_fast_zero},
        {"trim", nbd_can_trim},
        {"cache", nbd_can_cache},
        {"multi-conn", nbd_can_multi_conn},
        {"df", nbd_can_df},
        {"structured", nbd_get_structured_replies_negotiated}};
    int value = -1;
    for (const auto& [known, function] : flags)
      if (name == known) value = function(get());
    if (name == "block-status")
      value = nbd_can_meta_context(get(), LIBNBD_CONTEXT_BASE_ALLOCATION);
    if (value == -1) throw std::invalid_argument("unknown flag " + name);
    same("flag " + name, words.at(2), value ? "yes" : "no");
  }

  void block_size(const Words& words) {
    const int which = words.at(1) == "minimum"     ? LIBNBD_SIZE_MINIMUM
                      : words.at(1) == "preferred" ? LIBNBD_SIZE_PREFERRED
                                                   : LIBNBD_SIZE_MAXIMUM;
    same("block size " + words.at(1),
         std::to_string(plain_number(words.at(2))),
         std::to_string(nbd_get_block_size(get(), which)));
  }

  static void run(const std::string& command) {
    std::fflush(nullptr);
    if (std::system(command.c_str()) != 0)
      throw Unexpected("run: '" + command + "' failed");
  }

  void until(const Words& words) {
    const auto end = std::chrono::steady_clock::now() +
                     std::chrono::seconds(plain_number(words.at(1)));
    const Words rest(words.begin() + 2, words.end());
    for (;;) {
      try {
        return step(rest);
      } catch (const Unexpected& e) {
        if (std::chrono::steady_clock::now() >= end)
          throw Unexpected(std::string("until: still ") + e.what());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }

  [[nodiscard]] u64 offset(const std::string& text) const {
    if (text.compare(0, 3, "end") != 0) return plain_number(text);
    const auto size = static_cast<u64>(nbd_get_size(get()));
    if (text.size() == 3) return size;
    const u64 n = plain_number(std::string_view(text).substr(4));
    return text[3] == '+' ? size + n : size - n;
  }

  static std::uint32_t flags(const Words& words, std::size_t from) {
    const std::pair<const char*, std::uint32_t> known[] = {
        {"fua", LIBNBD_CMD_FLAG_FUA},
        {"no-hole", LIBNBD_CMD_FLAG_NO_HOLE},
        {"fast-zero", LIBNBD_CMD_FLAG_FAST_ZERO},
        {"req-one", LIBNBD_CMD_FLAG_REQ_ONE},
        {"df", LIBNBD_CMD_FLAG_DF}};
    std::uint32_t all = 0;
    for (; from < words.size(); from++) {
      const auto* found = std::ranges::find_if(
          known, [&](const auto& k) { return words[from] == k.first; });
      if (found == std::end(known))
        throw std::invalid_argument("unknown flag " + words[from]);
      all |= found->second;
    }
    return all;
  }

  static void expect(const std::string& wanted, int got, const Words& words) {
    std::string_view rest = wanted;
    for (;;) {
      const auto bar = rest.find('|');
      const std::string_view name = rest.substr(0, bar);
      const auto* known = std::ranges::find_if(
          errno_names, [&](const auto& e) { return name == e.first; });
      if (known == std::end(errno_names))
        throw std::invalid_argument("unknown result " + std::string(name));
      if (known->second == got) return;
      if (bar == rest.npos) break;
      rest.remove_prefix(bar + 1);
    }
    std::string what;
    for (const std::string& word : words) what += word + " ";
    throw Unexpected(what + "gave " + errno_name(got));
  }

  /// Sends one request, and returns 0 or the errno that came back.
  template <typename Send>
  int answer(const Words& words, Send send) {
    const auto end = std::chrono::steady_clock::now() + limit_;
    const std::int64_t cookie = send();
    if (cookie == -1) return failed();
    int done = 0;
    while ((done = nbd_aio_command_completed(
                get(), static_cast<u64>(cookie))) == 0)
      if (nbd_poll(get(), remaining(end, words.at(0))) == -1) return failed();
    return done == -1 ? failed() : 0;
  }

  static int failed() {
    const int code = nbd_get_errno();
    return code == 0 ? EIO : code;
  }

  /// One answer or, if a server says less than was asked for, several.
  struct Extents {
    std::string text;
    u64 length = 0;
    u64 last_length = 0;
    const char* last_type = nullptr;
    bool begun = false;  ///< this answer

    void add(u64 n, const char* type) {
      if (!begun && type == last_type) {
        text.erase(text.rfind(std::to_string(last_length)));
        last_length += n;
      } else {
        if (!text.empty()) text += ",";
        last_length = n;
      }
      text += std::to_string(last_length) + ":" + type;
      last_type = type;
      length += n;
      begun = true;
    }
  };

  static int collect(void* user, const char* context, u64, std::uint32_t* entry,
                     std::size_t count, int*) {
    if (std::strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0) return 0;
    auto& extents = *static_cast<Extents*>(user);
    static const char* const types[] = {"data", "hole-only", "zero", "hole"};
    for (std::size_t i = 0; i + 1 < count; i += 2)
      extents.add(entry[i], types[entry[i + 1] & 3]);
    return 0;
  }

  /// What "LENGTH:TYPE,..." is about, in bytes.
  static u64 length_of(std::string_view text) {
    u64 sum = 0;
    for (;;) {
      sum += plain_number(text.substr(0, text.find(':')));
      const auto comma = text.find(',');
      if (comma == text.npos) return sum;
      text.remove_prefix(comma + 1);
    }
  }

  /// A server may say less than it could, and ours does so when it has taken
  /// long, on a busy machine after a step.  Then, as clients do, the next
  /// request begins where the answer ended.
  void status(const Words& words, u64 at, u64 length) {
    const bool compare = words.at(0) == "extents";
    const u64 wanted = compare ? length_of(words.at(3)) : 0;
    Extents extents;
    do {
      extents.begun = false;
      const u64 from = extents.length;
      const int code = answer(words, [&] {
        return nbd_aio_block_status(get(), length - from, at + from,
                                    {collect, &extents, nullptr},
                                    NBD_NULL_COMPLETION, flags(words, 4));
      });
      expect(compare ? "ok" : words.at(3), code, words);
    } while (extents.begun && extents.length < std::min(wanted, length));
    if (compare)
      same("extents at " + words.at(1), words.at(3), extents.text);
  }

  void request(const Words& words) {
    const std::string& verb = words.at(0);
    const nbd_completion_callback none = NBD_NULL_COMPLETION;
    if (verb == "flush")
      return expect(words.at(1), answer(words, [&] {
                      return nbd_aio_flush(get(), none, 0);
                    }),
                    words);

    const u64 at = offset(words.at(1));
    const u64 length = plain_number(words.at(2));
    if (verb == "read" || verb == "read-is") {
      std::vector<char> data(std::max<u64>(length, 1), '\x5a');
      const int code = answer(words, [&] {
        return nbd_aio_pread(get(), data.data(), length, at, none, 0);
      });
      expect(verb == "read" ? words.at(3) : "ok", code, words);
      if (verb == "read") return;
      const auto wanted = static_cast<char>(plain_number(words.at(3)));
      for (u64 i = 0; i < length; i++)
        if (data[i] != wanted)
          throw Unexpected("read-is: byte " + std::to_string(at + i) + " is " +
                           std::to_string(static_cast<unsigned char>(data[i])) +
                           ", wanted " + words.at(3));
    } else if (verb == "write") {
      const std::vector<char> data(std::max<u64>(length, 1),
                                   static_cast<char>(plain_number(words.at(3))));
      expect(words.at(4), answer(words, [&] {
               return nbd_aio_pwrite(get(), data.data(), length, at, none,
                                     flags(words, 5));
             }),
             words);
    } else if (verb == "zero") {
      expect(words.at(3), answer(words, [&] {
               return nbd_aio_zero(get(), length, at, none, flags(words, 4));
             }),
             words);
    } else if (verb == "trim") {
      expect(words.at(3), answer(words, [&] {
               return nbd_aio_trim(get(), length, at, none, flags(words, 4));
             }),
             words);
    } else if (verb == "cache") {
      expect(words.at(3), answer(words, [&] {
               return nbd_aio_cache(get(), length, at, none, flags(words, 4));
             }),
             words);
    } else if (verb == "status" || verb == "extents") {
      status(words, at, length);
    } else {
      throw std::invalid_argument("unknown step " + verb);
    }
  }

  std::string uri_;
  Handle h_;
  std::chrono::milliseconds limit_ = std::chrono::seconds(60);
};

int print_export(void*, const char* name, const char* description) {
  std::printf("%s\t%s\n", name, description);
  return 0;
}

int list(const char* uri) {
  const Handle h = make_handle();
  nbd_set_opt_mode(h.get(), true);
  if (nbd_connect_uri(h.get(), uri) == -1 ||
      nbd_opt_list(h.get(), {print_export, nullptr, nullptr}) == -1)
    throw Unexpected(std::string("list: ") + nbd_get_error());
  nbd_opt_abort(h.get());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc >= 2 && std::strcmp(argv[1], "--help") == 0) {
    std::fputs(help_text, stdout);
    return 0;
  }
  if (argc < 3) {
    std::fputs(help_text, stderr);
    return 2;
  }
  Words words;
  try {
    if (std::strcmp(argv[1], "--list") == 0) return list(argv[2]);
    Client client(argv[1]);
    for (int i = 2; i <= argc; i++) {
      if (i < argc && std::strcmp(argv[i], ",") != 0) {
        words.emplace_back(argv[i]);
      } else if (!words.empty()) {
        client.step(words);
        words.clear();
      }
    }
    client.finish();
    return 0;
  } catch (const Unexpected& e) {
    std::fprintf(stderr, "nbd-expect: %s\n", e.what());
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nbd-expect: wrong use: %s%s\n", e.what(),
                 words.empty() ? "" : (" in step " + words[0]).c_str());
    return 2;
  }
}
