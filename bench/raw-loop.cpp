// SPDX-License-Identifier: BSD-3-Clause
//
// The yardstick: the cheapest loop over librados that does what an NBD
// server has to do in the cluster, and no NBD.  One thread keeps `depth`
// asynchronous operations in flight on the objects of an image
// (PREFIX.%012x or PREFIX.%016x) and reaps them.
//
// How it is made fast, so that the number can be judged:
// - Completions are waited for, oldest first (--reap=fifo): no callback,
//   because librados hands a callback to yet another thread.
//   --reap=sweep also looks at every younger one each time it wakes;
//   --reap=callback uses callbacks.  bench/README.md has the comparison.
// - Reads leave the data where librados received it (no copy at all).
// - Writes hand over a static buffer.  The buffer::raw is new for each
//   operation, because a used one remembers its checksum and would hide
//   the cost of it.
// - Debug levels are 0/0 unless --debug=default: librados otherwise
//   formats log lines into memory.
// - Object names are made once.

#include <rados/librados.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "load-tools.hpp"

namespace nbdrados::bench {
namespace {

constexpr const char* usage_text =
    "usage: raw-loop --conf=FILE --prefix=PREFIX --size=BYTES [OPTION...]\n"
    "  --pool=NAME --namespace=NAME --id=USER    default rbd, none, admin\n"
    "  --object-size=BYTES --digits=12|16        default 4M, 12\n"
    "  --offset=BYTES                            start of the range, 0\n"
    "  --op=read|write --pattern=random|sequential\n"
    "  --block-size=BYTES --depth=N --seed=N     default 4k, 1, 1\n"
    "  --seconds=S --count=OPERATIONS --warmup=S default 1, none, 0\n"
    "  --reap=fifo|sweep|callback                default fifo\n"
    "  --alloc-hint                              writes as librbd does\n"
    "  --debug=off|default                       librados log levels\n"
    "  --gate                                    wait on standard input\n";

enum class Reap { fifo, sweep, callback };

struct Settings {
  std::string conf, id, pool, name_space, prefix, reap_name;
  std::uint64_t object_size, size, offset, block_size, depth, digits, seed;
  std::uint64_t count;
  double seconds, warmup;
  bool write, sequential, alloc_hint, debug_default, gate;
  Reap reap;

  explicit Settings(Options& options)
      : conf(options.required("conf")),
        id(options.text("id", "admin")),
        pool(options.text("pool", "rbd")),
        name_space(options.text("namespace", "")),
        prefix(options.required("prefix")),
        reap_name(options.text("reap", "fifo")),
        object_size(options.size("object-size", 4 << 20)),
        size(parse_size("size", options.required("size"))),
        offset(options.size("offset", 0)),
        block_size(options.size("block-size", 4096)),
        depth(options.size("depth", 1)),
        digits(options.choice("digits", "12", "16") ? 16 : 12),
        seed(options.size("seed", 1)),
        count(options.size("count", 0)),
        seconds(options.seconds("seconds", count ? 0 : 1)),
        warmup(options.seconds("warmup", 0)),
        write(options.choice("op", "read", "write")),
        sequential(options.choice("pattern", "random", "sequential")),
        alloc_hint(options.flag("alloc-hint")),
        debug_default(options.choice("debug", "off", "default")),
        gate(options.flag("gate")),
        reap(reap_name == "fifo"    ? Reap::fifo
             : reap_name == "sweep" ? Reap::sweep
                                    : Reap::callback) {
    options.finish();
    if (reap == Reap::callback && reap_name != "callback")
      throw UsageError("--reap= is fifo, sweep or callback");
    if (block_size == 0 || depth == 0 || depth > 4096)
      throw UsageError("--block-size= is at least 1, --depth= 1 to 4096");
    // Every operation then touches one object, as in an NBD server.
    if (object_size % block_size != 0 || offset % block_size != 0)
      throw UsageError(
          "--block-size= must divide --object-size= and --offset=");
    if (size < block_size)
      throw UsageError("--size= is less than --block-size=");
    if (count == 0 && seconds <= 0)
      throw UsageError("--count= or --seconds= must bound the run");
  }
};

void check(int code, const std::string& what) {
  if (code < 0)
    throw std::runtime_error(
        what + ": " + std::generic_category().message(-code));
}

struct ReleaseCompletion {
  void operator()(librados::AioCompletion* completion) const {
    completion->release();
  }
};
using Completion =
    std::unique_ptr<librados::AioCompletion, ReleaseCompletion>;

/// One operation that may be in flight, and its buffers.
struct Slot {
  Completion completion;
  librados::bufferlist data;
  std::unique_ptr<char[]> payload;
  Clock::time_point submitted;
  // Only for --reap=callback: the list of finished slots.
  Slot* next_done = nullptr;
  std::atomic<Slot*>* done = nullptr;
};

class Loop {
 public:
  explicit Loop(const Settings& settings)
      : settings_(settings),
        places_(settings.offset,
                settings.size / settings.block_size * settings.block_size,
                settings.block_size, !settings.sequential, settings.seed),
        slots_(settings.depth) {
    check(cluster_.init(settings.id.c_str()), "rados_create");
    check(cluster_.conf_read_file(settings.conf.c_str()), settings.conf);
    if (!settings.debug_default)
      for (const char* name :
           {"debug_ms", "debug_rados", "debug_objecter", "debug_monc",
            "debug_auth", "debug_crypto", "debug_finisher",
            "debug_throttle", "debug_buffer", "debug_client"})
        check(cluster_.conf_set(name, "0/0"), name);
    check(cluster_.connect(), "connecting to the cluster");
    check(cluster_.ioctx_create(settings.pool.c_str(), io_),
          "pool " + settings.pool);
    io_.set_namespace(settings.name_space);

    const std::uint64_t last =
        (settings.offset + settings.size - 1) / settings.object_size;
    first_object_ = settings.offset / settings.object_size;
    std::array<char, 20> suffix{};
    for (std::uint64_t i = first_object_; i <= last; ++i) {
      std::snprintf(suffix.data(), suffix.size(),
                    settings.digits == 16 ? ".%016llx" : ".%012llx",
                    static_cast<unsigned long long>(i));
      names_.push_back(settings.prefix + suffix.data());
    }
    std::uint64_t word = settings.seed;
    for (Slot& slot : slots_) {
      slot.done = &done_;
      slot.payload = std::make_unique<char[]>(settings.block_size);
      for (std::uint64_t i = 0; settings.write && i < settings.block_size;
           ++i)
        slot.payload[i] = static_cast<char>(mix(++word));
      free_.push_back(&slot);
    }
    pending_.reserve(slots_.size());
  }

  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  ~Loop() {
    // Nothing may be in flight when the buffers go away.
    for (Slot& slot : slots_)
      if (slot.completion) slot.completion->wait_for_complete();
    io_.close();
    cluster_.shutdown();
  }

  [[nodiscard]] Result run(const Bound& bound) {
    Result result;
    result.before = Usage::now();
    const Clock::time_point start = Clock::now();
    const Clock::time_point deadline =
        bound.duration == Clock::duration::max()
            ? Clock::time_point::max()
            : start + bound.duration;
    std::uint64_t submitted = 0;
    Clock::time_point now = start;
    for (;;) {
      while (!free_.empty() && now < deadline &&
             (bound.operations == 0 || submitted < bound.operations)) {
        submit(*free_.back());
        free_.pop_back();
        ++submitted;
        now = Clock::now();
      }
      if (free_.size() == slots_.size()) break;
      reap(result);
      now = Clock::now();
    }
    result.elapsed_s = std::chrono::duration<double>(now - start).count();
    result.after = Usage::now();
    return result;
  }

 private:
  void submit(Slot& slot) {
    const std::uint64_t place = places_.next();
    const std::string& name =
        names_[place / settings_.object_size - first_object_];
    const std::uint64_t offset = place % settings_.object_size;
    const std::uint64_t length = settings_.block_size;

    if (settings_.reap == Reap::callback)
      slot.completion.reset(
          librados::Rados::aio_create_completion(&slot, on_complete));
    else
      slot.completion.reset(librados::Rados::aio_create_completion());
    slot.data.clear();
    slot.submitted = Clock::now();
    int code = 0;
    if (settings_.write) {
      slot.data.push_back(ceph::buffer::create_static(
          static_cast<unsigned>(length), slot.payload.get()));
      if (settings_.alloc_hint) {
        librados::ObjectWriteOperation operation;
        operation.set_alloc_hint2(settings_.object_size,
                                  settings_.object_size, 0);
        operation.write(offset, slot.data);
        code = io_.aio_operate(name, slot.completion.get(), &operation);
      } else {
        code = io_.aio_write(name, slot.completion.get(), slot.data, length,
                             offset);
      }
    } else {
      code = io_.aio_read(name, slot.completion.get(), &slot.data, length,
                          offset);
    }
    if (code < 0) slot.completion.reset();
    check(code, name);
    if (settings_.reap != Reap::callback) pending_.push_back(&slot);
  }

  void finish(Slot& slot, Result& result) {
    const int code = slot.completion->get_return_value();
    slot.completion.reset();
    result.latency.add(Clock::now() - slot.submitted);
    ++result.operations;
    // A hole is a valid thing to read, every other error is the end.
    if (code == -ENOENT && !settings_.write)
      ++result.missing;
    else
      check(code, settings_.write ? "write" : "read");
    free_.push_back(&slot);
  }

  /// Returns when at least one operation has been reaped.
  void reap(Result& result) {
    if (settings_.reap == Reap::callback) {
      done_.wait(nullptr);
      Slot* slot = done_.exchange(nullptr);
      while (slot != nullptr) {
        Slot* next = slot->next_done;
        finish(*slot, result);
        slot = next;
      }
      return;
    }
    // Oldest first; pending_ is in order of submission.
    pending_.front()->completion->wait_for_complete();
    std::size_t kept = 0;
    bool stop = false;
    for (Slot* slot : pending_) {
      if (!stop && slot->completion->is_complete()) {
        finish(*slot, result);
      } else {
        stop = settings_.reap == Reap::fifo;
        pending_[kept++] = slot;
      }
    }
    pending_.resize(kept);
  }

  static void on_complete(librados::completion_t, void* argument) noexcept {
    auto* slot = static_cast<Slot*>(argument);
    Slot* head = slot->done->load();
    do {
      slot->next_done = head;
    } while (!slot->done->compare_exchange_weak(head, slot));
    if (head == nullptr) slot->done->notify_one();
  }

  const Settings& settings_;
  Places places_;
  librados::Rados cluster_;
  librados::IoCtx io_;
  std::vector<std::string> names_;
  std::uint64_t first_object_ = 0;
  std::atomic<Slot*> done_{nullptr};
  std::vector<Slot> slots_;
  std::vector<Slot*> free_;
  std::vector<Slot*> pending_;
};

int run(int argc, char** argv) {
  Options options(argc, argv);
  if (options.flag("help")) {
    std::cout << usage_text;
    return EXIT_SUCCESS;
  }
  const Settings settings(options);
  const Gate gate(settings.gate);
  Loop loop(settings);
  if (settings.warmup > 0)
    static_cast<void>(loop.run(bound_of(0, settings.warmup)));
  gate.before_measuring();
  const Result result =
      loop.run(bound_of(settings.count, settings.seconds));
  Json json;
  json.add("program", std::string("raw-loop"))
      .add("op", std::string(settings.write ? "write" : "read"))
      .add("pattern",
           std::string(settings.sequential ? "sequential" : "random"))
      .add("depth", settings.depth)
      .add("reap", settings.reap_name)
      .add("alloc_hint", settings.alloc_hint)
      .add("debug_off", !settings.debug_default)
      .add(result, settings.block_size);
  std::cout << json.line() << std::endl;
  gate.after_measuring();
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace nbdrados::bench

int main(int argc, char** argv) {
  try {
    return nbdrados::bench::run(argc, argv);
  } catch (const nbdrados::bench::UsageError& error) {
    std::cerr << "raw-loop: " << error.what() << '\n'
              << nbdrados::bench::usage_text;
  } catch (const std::exception& error) {
    std::cerr << "raw-loop: " << error.what() << '\n';
  }
  return EXIT_FAILURE;
}
