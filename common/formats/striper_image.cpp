// SPDX-License-Identifier: BSD-3-Clause
//
// Striped objects of libradosstriper.  Layout and size are attributes of
// the first object, which also carries the lock: whoever reads or writes
// holds it shared, whoever truncates or removes holds it exclusively
// (ceph: src/libradosstriper/RadosStriperImpl.cc).
//
// libradosstriper locks each operation; an export is one long operation, so
// it holds the lock from open to close.  libradosstriper's locks never
// expire; ours does, and is renewed, so that a crash of ours does not lock
// an object for ever.  When it cannot be renewed in time, or somebody has
// broken it, requests fail: the object may be truncated under us.

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <random>

#include "coherence/boot_clock.hpp"
#include "formats/formats.hpp"
#include "formats/striper_metadata.hpp"
#include "rados/error.hpp"
#include "rbd/cls_lock.hpp"

namespace nbdrados {

namespace {

// The OSD's time for the lock goes on while this machine is suspended.
using Clock = BootClock;

constexpr std::chrono::seconds lock_duration{60};
constexpr std::chrono::seconds lock_renewal{15};
constexpr std::chrono::seconds lock_retry{1};
/// Longest time that one attempt may take.
constexpr std::chrono::seconds lock_patience{5};
/// Requests stop this long before the OSD drops the lock.
constexpr std::chrono::seconds lock_margin{10};

constexpr std::uint64_t default_size = 4 << 20;

std::string random_cookie() {
  std::random_device random;
  std::string cookie = "nbdkit-rados ";
  for (int i = 0; i < 16; ++i)
    cookie += "0123456789abcdef"[random() & 15];
  return cookie;
}

/// The attributes of the first object; false where there is none.
bool read_attributes(const Pool& pool, const std::string& image,
                     std::map<std::string, std::string>* attributes) {
  const std::string oid = striper_oid(image, 0);
  const int r = pool.wait(pool.store->xattrs(oid, attributes));
  if (r == -ENOENT) return false;
  check(r, "cannot read the attributes of object " + oid);
  return true;
}

StriperMetadata decode_attributes(
    const std::string& image,
    const std::map<std::string, std::string>& attributes) {
  try {
    return StriperMetadata::decode(attributes);
  } catch (const Error& e) {
    throw Error(e.code(),
                "striped object '" + image + "': " + e.what());
  }
}

/// "client.4123 at 192.0.2.1:0/1234567", whoever holds the lock.
std::string lock_holders(const Pool& pool, const std::string& oid) {
  std::string bytes;
  const int r = pool.wait(
      pool.store->exec(oid, lock_class, lock_method_get_info,
                       encode_get_lock_info(striper_lock_name), &bytes));
  std::string text;
  if (r >= 0)
    for (const LockHolder& h : decode_lock_info(bytes).holders)
      text += (text.empty() ? "" : ", ") + h.entity() + " at " + h.address;
  return text.empty() ? "somebody" : text;
}

class Striper final : public ImageFormat {
 public:
  Striper(Pool pool, ImageSpec spec, const StriperMetadata& m, bool writable)
      : pool_(std::move(pool)),
        spec_(std::move(spec)),
        metadata_(m),
        traits_{.name = spec_.text(),
                .format = "striped object",
                .layout =
                    Layout(m.object_size, m.stripe_unit, m.stripe_count),
                .object_prefix = spec_.image,
                .name_digits = 16,
                .keep_first_object = true,
                .alloc_hints = false,
                .header_oid = {},
                .details = {}},
        cookie_(random_cookie()) {
    const int r = take_lock();
    if (r == -EBUSY)
      throw Error(EBUSY, "striped object '" + spec_.image +
                             "' is being truncated or removed: locked by " +
                             lock_holders(pool_, first_oid()));
    // A key without write capability cannot lock; who only reads can do
    // without: it then sees zeros where others truncate.
    locked_ = r >= 0;
    if (r < 0 && (writable || (r != -EPERM && r != -EACCES)))
      fail(-r, "cannot lock striped object '" + spec_.image + "'");
  }

  ~Striper() override {
    if (!locked_) return;
    try {
      const std::string input = encode_unlock(striper_lock_name, cookie_);
      WriteOp op;
      op.assert_exists().exec(lock_class, lock_method_unlock, input);
      const auto pending = pool_.store->write(first_oid(), op, {});
      // Where it fails, the lock expires by itself.
      (void)pending->wait_for(std::min<std::chrono::milliseconds>(
          pool_.timeout(), std::chrono::seconds(5)));
    } catch (...) {
    }
  }
  Striper(const Striper&) = delete;
  Striper& operator=(const Striper&) = delete;

  const ImageTraits& traits() const override { return traits_; }

  View load() override {
    // An object that was made in place of this one has not got our lock, or
    // where we have none, perhaps another layout.  It is for those who open it.
    if (locked_) (void)renew();
    std::map<std::string, std::string> attributes;
    if (!read_attributes(pool_, spec_.image, &attributes))
      throw Error(ENOENT, traits_.name + ": the object has been deleted");
    const StriperMetadata now = decode_attributes(spec_.image, attributes);
    if (now.object_size != metadata_.object_size ||
        now.stripe_unit != metadata_.stripe_unit ||
        now.stripe_count != metadata_.stripe_count)
      throw Error(ESHUTDOWN, "it has been replaced by one of another layout");
    View view;
    view.size = now.size;
    return view;
  }

  std::optional<BootClock::time_point> locked_until() const override {
    if (!locked_) return std::nullopt;
    return deadline();
  }

  std::optional<std::chrono::milliseconds> keep_alive() override {
    if (!locked_) return std::nullopt;
    if (Clock::now() < locked_at_ + lock_retry) return lock_renewal;
    return renew();
  }

  ObjectStore& header_store() override { return *pool_.store; }
  ObjectStore& data_store() override { return *pool_.data; }

 private:
  std::string first_oid() const { return striper_oid(spec_.image, 0); }

  /// When requests must stop, unless the lock has been renewed.
  Clock::time_point deadline() const {
    return locked_at_ + lock_duration - lock_margin;
  }

  /// Renews the lock, and returns after what time to do so again.  Throws
  /// Error(ESHUTDOWN) when it is lost.
  std::chrono::milliseconds renew() {
    const int r = take_lock();
    if (r >= 0) return lock_renewal;
    if (r == -EBUSY || r == -ENOENT || r == -ENXIO || r == -ESHUTDOWN ||
        Clock::now() >= deadline())
      throw Error(ESHUTDOWN,
                  "the lock striper.lock is lost: " + error_text(-r));
    return std::min<std::chrono::milliseconds>(
        lock_retry, std::chrono::duration_cast<std::chrono::milliseconds>(
                        deadline() - Clock::now()));
  }

  /// Takes or renews the lock.  Returns 0 or a negative errno.
  int take_lock() {
    const auto asked = Clock::now();
    const std::string input =
        encode_lock(striper_lock_name, LockType::shared, cookie_,
                    striper_lock_tag, "nbdkit rados", lock_duration,
                    locked_ ? lock_flag_must_renew : 0);
    WriteOp op;
    op.assert_exists().exec(lock_class, lock_method_lock, input);
    const auto pending = pool_.store->write(first_oid(), op, {});
    const auto patience =
        locked_ ? std::clamp<Clock::duration>(deadline() - asked, {},
                                              lock_patience)
                : Clock::duration(pool_.timeout());
    const int r = pending->wait_for(
        std::chrono::duration_cast<std::chrono::milliseconds>(patience));
    if (r >= 0) locked_at_ = asked;
    return r;
  }

  const Pool pool_;
  const ImageSpec spec_;
  const StriperMetadata metadata_;
  const ImageTraits traits_;
  const std::string cookie_;
  bool locked_ = false;
  Clock::time_point locked_at_;
};

/// As a write by libradosstriper: the size only ever grows, atomically.
void grow(const Pool& pool, const std::string& image, std::uint64_t size) {
  const std::string value = std::to_string(size);
  WriteOp op;
  op.cmp_xattr_gt(striper_attr_size, size)
      .set_xattr(striper_attr_size, value);
  const int r = pool.wait(pool.store->write(striper_oid(image, 0), op, {}));
  if (r != -ECANCELED)  // it is as long already
    check(r, "cannot grow striped object '" + image + "'");
}

}  // namespace

bool exists_striper(const Pool& pool, const std::string& image) {
  return object_exists(pool, striper_oid(image, 0));
}

std::optional<ImageIdentity> resolve_striper(const Pool& pool,
                                             const ImageSpec& spec) {
  std::map<std::string, std::string> attributes;
  if (!read_attributes(pool, spec.image, &attributes)) return std::nullopt;
  if (!spec.snapshot.empty() || !spec.since.empty())
    throw Error(EINVAL, "striped object '" + spec.image +
                            "': striped objects have no snapshots");
  ImageIdentity identity;
  identity.image = spec.image;
  return identity;
}

std::unique_ptr<ImageFormat> open_striper(const Pool& pool,
                                          const ImageIdentity& identity,
                                          const ImageSpec& spec,
                                          const OpenOptions& options) {
  std::map<std::string, std::string> attributes;
  if (!read_attributes(pool, identity.image, &attributes))
    throw Error(ENOENT, spec.text() + ": the object has just been removed");
  auto format = std::make_unique<Striper>(
      pool, spec, decode_attributes(spec.image, attributes),
      options.writable);
  // Under the lock, as libradosstriper does.
  if (options.writable && options.grow_to != 0)
    grow(pool, spec.image, options.grow_to);
  return format;
}

void create_striper(const Pool& pool, const ImageSpec& spec,
                    const CreateOptions& options) {
  StriperMetadata m;
  m.object_size = options.object_size.value_or(
      std::max(default_size, options.stripe_unit.value_or(0)));
  m.stripe_unit = options.stripe_unit.value_or(
      std::min(default_size, m.object_size));
  m.stripe_count = options.stripe_count.value_or(1);
  m.size = options.size;
  const auto attributes = m.encode();
  WriteOp op;
  op.create();
  for (const auto& [name, value] : attributes) op.set_xattr(name, value);
  const std::string oid = striper_oid(spec.image, 0);
  const int r = pool.wait(pool.store->write(oid, op, {}));
  if (r == -EEXIST)
    throw Error(EEXIST, "striped object '" + spec.image + "' exists already");
  check(r, "cannot create object " + oid);
}

void list_striper(const Pool& pool, Listing& into,
                  const std::function<void(const std::string&)>& log) {
  static constexpr std::string_view suffix = ".0000000000000000";
  // An RBD image's first data object has the same ending.
  const auto wanted = [](std::string_view oid) {
    return oid.ends_with(suffix) && !oid.starts_with("rbd_data.");
  };
  for (const std::string& oid : pool.store->list(wanted, log))
    into[oid.substr(0, oid.size() - suffix.size())];
}

}  // namespace nbdrados
