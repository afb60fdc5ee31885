// SPDX-License-Identifier: BSD-3-Clause

#include "formats/listing.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <deque>
#include <iterator>
#include <map>
#include <string_view>
#include <utility>

#include "formats/format2_snapshots.hpp"
#include "formats/formats.hpp"
#include "rados/batch.hpp"
#include "rados/error.hpp"
#include "rbd/directory.hpp"
#include "rbd/format1.hpp"
#include "rbd/format2.hpp"

namespace nbdrados {

namespace {

/// As many as librbd asks for at a time (RBD_MAX_KEYS_READ is 64, the object
/// class allows more).
constexpr std::uint64_t page = 1024;

/// An image of the list.
struct ListedImage {
  std::string id = {};  // "": format 1
  bool shown = true;
  bool snapshots_shown = true;  // perhaps
  HeaderSnapshots header = {};
};

/// rbd_directory of a namespace.
struct Directory {
  std::string name_space;
  Pool pool;
  std::map<std::string, ListedImage> images = {};
  int error = 0;  // positive errno; then images are missing
};

struct Name {
  std::string text;
  bool is_snapshot;
};

/// One listing.
class Lister {
 public:
  Lister(const std::shared_ptr<Cluster>& cluster, std::string pool,
         const std::optional<std::string>& name_space,
         const ListOptions& options)
      : cluster_(cluster),
        pool_(std::move(pool)),
        one_namespace_(name_space.has_value() ||
                       options.format == FormatChoice::striper),
        options_(options),
        start_(std::chrono::steady_clock::now()) {
    add_directory(name_space.value_or(""));
  }

  std::vector<std::string> list();
  std::optional<std::string> only();

 private:
  /// Operations that end after this part of the time for the listing.
  [[nodiscard]] Batch make_batch(unsigned percent) const {
    const auto limit = cluster_->timeout();
    return Batch({.deadline = start_ + limit * percent / 100,
                  .patience = limit / 100,
                  .stop = options_.stop});
  }
  /// Reads an object that is small, as a rule.
  static void add_read(Batch& batch, ObjectStore& store, const std::string& oid,
                       std::uint64_t limit,
                       std::function<void(int, std::string_view)> done);

  void add_directory(const std::string& name_space) {
    directories_.push_back(
        {name_space, open_pool(cluster_, pool_, name_space)});
  }
  void add_namespaces(unsigned percent);
  /// Reads directories from number `first` on until each has `enough` images
  /// or has no more.
  void read_directories(std::size_t first, std::size_t count,
                        std::size_t enough, unsigned percent);
  void add_page(Batch& batch, Directory& directory, const std::string& last,
                std::size_t enough);
  void read_striper();

  void read_headers();
  void add_header1(Batch& batch, Directory& directory, const std::string& name,
                   ListedImage& image);
  void add_header2(Batch& batch, Directory& directory, ListedImage& image);

  [[nodiscard]] bool wants(FormatChoice format) const noexcept {
    return options_.format == format ||
           options_.format == FormatChoice::automatic;
  }
  /// Of those that are shown.
  [[nodiscard]] std::size_t count_images() const;
  [[nodiscard]] std::string text(const Directory& directory,
                                 const std::string& image,
                                 const std::string& snapshot = {}) const;
  void drop_unread();
  void drop_hidden();
  void log_unread() const;
  [[nodiscard]] std::vector<Name> names() const;
  [[nodiscard]] std::vector<std::string> cut(std::vector<Name> names) const;
  void log(const std::string& line) const {
    if (options_.log) options_.log("pool '" + pool_ + "': " + line);
  }

  const std::shared_ptr<Cluster>& cluster_;
  const std::string pool_;
  const bool one_namespace_;
  const ListOptions& options_;
  const std::chrono::steady_clock::time_point start_;
  std::deque<Directory> directories_;  // batches point to them
};

/// "a, b, c and more" of at least one name.
std::string some(const std::vector<std::string>& names) {
  constexpr std::size_t most = 10;
  std::string text = names.front();
  for (std::size_t i = 1; i < std::min(names.size(), most); ++i)
    text += ", " + names[i];
  return names.size() > most ? text + " and more" : text;
}

// ---- Directories

void Lister::add_read(Batch& batch, ObjectStore& store, const std::string& oid,
                      std::uint64_t limit,
                      std::function<void(int, std::string_view)> done) {
  // What a read may bring is taken for what it brings, where the user has set a
  // bound on that (objecter_inflight_op_bytes).  Few objects are larger than
  // this, and of those two are read at a time.
  constexpr std::uint64_t usual = 64 << 10;
  constexpr std::size_t heavy = 64;
  const auto bytes = std::make_shared<std::string>();
  batch.add([&store, oid, bytes] { return store.read_all(oid, usual,
                                                         bytes.get()); },
            [&batch, &store, oid, limit, bytes, done](int r) {
              if (r < 0 || bytes->size() < usual) return done(r, *bytes);
              batch.add(
                  [&store, oid, limit, bytes] {
                    return store.read_all(oid, limit, bytes.get());
                  },
                  [bytes, done](int again) { done(again, *bytes); }, heavy);
            });
}

void Lister::add_page(Batch& batch, Directory& directory,
                      const std::string& last, std::size_t enough) {
  const std::uint64_t size = std::min<std::uint64_t>(page, enough);
  const auto reply = std::make_shared<std::string>();
  batch.add(
      [&directory, last, size, reply] {
        return directory.pool.store->exec(std::string(rbd_directory_oid),
                                          rbd_class, "dir_list",
                                          encode_list(last, size), reply.get());
      },
      [this, &batch, &directory, size, enough, reply](int r) {
        if (r == -ENOENT) return;
        try {
          check(r, "dir_list");
          const auto found = decode_dir_list(*reply);
          // Where both formats have a name, this one is what opens
          // (open_format).
          for (const auto& [name, id] : found) directory.images[name].id = id;
          if (found.size() == size && directory.images.size() < enough)
            add_page(batch, directory, found.rbegin()->first, enough);
        } catch (const Error& e) {
          directory.error = e.code();
        }
      });
}

void Lister::read_directories(std::size_t first, std::size_t count,
                              std::size_t enough, unsigned percent) {
  // Names of some 400,000 images of format 1.
  constexpr std::uint64_t limit = 16 << 20;
  Batch batch = make_batch(percent);
  for (std::size_t i = first; i < std::min(first + count, directories_.size());
       ++i) {
    Directory& d = directories_[i];
    if (wants(FormatChoice::format1))
      add_read(batch, *d.pool.store, std::string(rbd_directory_oid), limit,
               [&d](int r, std::string_view bytes) {
                 if (r == -ENOENT) return;
                 try {
                   check(r, "rbd_directory");
                   for (const auto& e : decode_trivial_map(bytes).entries)
                     (void)d.images[e.first];
                 } catch (const Error& e) {
                   d.error = e.code();
                 }
               });
    if (wants(FormatChoice::format2)) add_page(batch, d, "", enough);
  }
  batch.run();
}

void Lister::add_namespaces(unsigned percent) {
  std::string last;
  for (bool more = !one_namespace_; more;) {
    Batch batch = make_batch(percent);
    std::string reply;
    int result = 0;
    batch.add(
        [&] {
          return directories_.front().pool.store->exec(
              std::string(rbd_namespace_oid), rbd_class, "namespace_list",
              encode_list(last, page), &reply);
        },
        [&](int r) { result = r; });
    batch.run();
    if (result == -ENOENT) return;
    check(result, "cannot list the namespaces of pool '" + pool_ + "'");
    const auto names = decode_namespace_list(reply);
    for (const std::string& name : names) add_directory(name);
    more = names.size() == page;
    if (more) last = names.back();
  }
}

void Lister::read_striper() {
  Listing objects;
  list_striper(directories_.front().pool, objects,
               [this](const std::string& line) { log(line); });
  for (const auto& object : objects)
    (void)directories_.front().images[object.first];
}

// ---- Headers

void Lister::add_header1(Batch& batch, Directory& directory,
                         const std::string& name, ListedImage& image) {
  // A header of 500 snapshots with long names is 60 KiB.
  constexpr std::uint64_t limit = 8 << 20;
  add_read(batch, *directory.pool.store, format1_header_oid(name), limit,
           [&image](int r, std::string_view bytes) {
             try {
               check(r, "header");
               const Format1Header header = decode_format1(bytes);
               for (const Format1Snapshot& s : header.snapshots)
                 image.header.snapshots.emplace_back().name = s.name;
             } catch (const Error& e) {
               image.header.error = e.code();
             }
           });
}

void Lister::add_header2(Batch& batch, Directory& directory,
                         ListedImage& image) {
  ObjectStore& store = *directory.pool.store;
  const std::string oid = format2_header_oid(image.id);
  const auto reply = std::make_shared<std::string>();
  batch.add(
      [&store, oid, reply] {
        return store.exec(oid, rbd_class, "get_snapcontext", {}, reply.get());
      },
      [&batch, &store, &image, oid, reply](int r) {
        try {
          check(r, "header");
          add_snapshots(batch, store, oid, decode_get_snapcontext(*reply).snaps,
                        image.header);
        } catch (const Error& e) {
          image.header.error = e.code();
        }
      });
}

void Lister::read_headers() {
  Batch batch = make_batch(100);
  for (Directory& d : directories_)
    for (auto& [name, image] : d.images) {
      if (!image.snapshots_shown) continue;
      if (image.id.empty())
        add_header1(batch, d, name, image);
      else
        add_header2(batch, d, image);
    }
  batch.run();
}

// ---- The list

std::size_t Lister::count_images() const {
  std::ptrdiff_t n = 0;
  for (const Directory& d : directories_)
    n += std::ranges::count_if(
        d.images, [](const auto& image) { return image.second.shown; });
  return static_cast<std::size_t>(n);
}

std::string Lister::text(const Directory& directory, const std::string& image,
                         const std::string& snapshot) const {
  if (options_.format == FormatChoice::striper) return image;
  return ImageSpec{.pool = pool_,
                   .name_space = one_namespace_ ? "" : directory.name_space,
                   .image = image,
                   .snapshot = snapshot}
      .name();
}

/// Forgets directories that could not be read.
void Lister::drop_unread() {
  std::vector<std::string> unread;
  int error = 0;
  for (const Directory& d : directories_)
    if (d.error != 0) {
      unread.push_back("'" + d.name_space + "'");
      error = d.error;
    }
  if (unread.empty()) return;
  if (unread.size() == directories_.size())
    fail(error, "cannot list the images of pool '" + pool_ + "'");
  log("the list lacks the images of " + std::to_string(unread.size()) + " of " +
      std::to_string(directories_.size()) + " namespaces: " + some(unread) +
      ": " + error_text(error));
  std::erase_if(directories_, [](const Directory& d) { return d.error != 0; });
}

/// Forgets images of which nothing is shown.
void Lister::drop_hidden() {
  for (Directory& d : directories_)
    for (auto it = d.images.begin(); it != d.images.end();) {
      const std::string name = text(d, it->first);
      ListedImage& image = it->second;
      image.shown = options_.shown.name(name);
      image.snapshots_shown =
          options_.snapshots && options_.shown.any(name + "@");
      it = image.shown || image.snapshots_shown ? std::next(it)
                                                : d.images.erase(it);
    }
}

void Lister::log_unread() const {
  std::vector<std::string> unread;
  std::size_t images = 0;
  int error = 0;
  for (const Directory& d : directories_) {
    images += d.images.size();
    for (const auto& [name, image] : d.images)
      // Without a header it is being removed, or was left over.
      if (image.header.error != 0 && image.header.error != ENOENT) {
        unread.push_back(text(d, name));
        error = image.header.error;
      }
  }
  if (unread.empty()) return;
  log(std::to_string(unread.size()) + " of " + std::to_string(images) +
      " images are listed without their snapshots: " + some(unread) + ": " +
      error_text(error));
}

std::vector<Name> Lister::names() const {
  std::vector<Name> all;
  for (const Directory& d : directories_)
    for (const auto& [name, image] : d.images) {
      if (image.shown) all.push_back({text(d, name), false});
      const auto first = static_cast<std::ptrdiff_t>(all.size());
      if (image.header.error != 0) continue;
      for (const Format2Snapshot& s : image.header.snapshots)
        if (std::string t = text(d, name, s.name);
            s.kind == Format2SnapshotKind::user && options_.shown.name(t))
          all.push_back({std::move(t), true});
      std::sort(all.begin() + first, all.end(),
                [](const Name& a, const Name& b) { return a.text < b.text; });
    }
  // An export name is a C string to nbdkit.
  const std::size_t impossible = std::erase_if(all, [this](const Name& n) {
    return n.text.size() > options_.longest ||
           n.text.find('\0') != std::string::npos;
  });
  if (impossible != 0)
    log(std::to_string(impossible) +
        " names are not listed: they are longer than " +
        std::to_string(options_.longest) +
        " bytes, or have a zero byte in them");
  return all;
}

/// As many as there may be, images before snapshots.
std::vector<std::string> Lister::cut(std::vector<Name> names) const {
  const std::size_t total = names.size();
  const auto images = static_cast<std::size_t>(
      std::count_if(names.begin(), names.end(),
                    [](const Name& n) { return !n.is_snapshot; }));
  std::size_t room_images = std::min(options_.most, images);
  std::size_t room_snapshots = options_.most - room_images;
  std::vector<std::string> kept;
  for (Name& n : names) {
    std::size_t& room = n.is_snapshot ? room_snapshots : room_images;
    if (room == 0) continue;
    --room;
    kept.push_back(std::move(n.text));
  }
  if (images > options_.most)
    log("has " + std::to_string(images) + " images, of which only the first " +
        std::to_string(kept.size()) + " are listed");
  else if (kept.size() < total)
    log("has " + std::to_string(images) + " images and " +
        std::to_string(total - images) + " snapshots, of which " +
        std::to_string(total - kept.size()) + " snapshots are not listed");
  return kept;
}

std::vector<std::string> Lister::list() {
  if (options_.format == FormatChoice::striper) {
    read_striper();
    drop_hidden();
    return cut(names());
  }
  // In shares of the time, so that what does not answer leaves some for the
  // rest.
  try {
    add_namespaces(25);
  } catch (const Error& e) {
    if (e.code() != ETIMEDOUT) throw;
    log(std::string("the list lacks the images of namespaces: ") + e.what());
  }
  constexpr std::size_t all = ~std::size_t{0};
  read_directories(0, directories_.size(), all, 60);
  drop_unread();
  drop_hidden();
  // With as many images as there may be names, no snapshot would be listed.
  if (count_images() < options_.most) read_headers();
  log_unread();
  return cut(names());
}

std::optional<std::string> Lister::only() {
  constexpr std::size_t enough = 2;
  constexpr std::size_t at_once = 64;
  if (options_.format == FormatChoice::striper)
    read_striper();
  else
    read_directories(0, 1, enough, 100);
  if (count_images() < enough) add_namespaces(100);
  for (std::size_t i = 1; i < directories_.size() && count_images() < enough;
       i += at_once)
    read_directories(i, at_once, enough, 100);
  if (count_images() >= enough) return std::nullopt;
  for (const Directory& d : directories_)
    if (d.error != 0)
      fail(d.error, "cannot list the images of pool '" + pool_ + "'");
  for (const Directory& d : directories_)
    for (const auto& image : d.images) return text(d, image.first);
  return std::nullopt;
}

}  // namespace

std::vector<std::string> list_images(
    const std::shared_ptr<Cluster>& cluster, const std::string& pool,
    const std::optional<std::string>& name_space, const ListOptions& options) {
  return Lister(cluster, pool, name_space, options).list();
}

std::optional<std::string> only_image(
    const std::shared_ptr<Cluster>& cluster, const std::string& pool,
    const std::optional<std::string>& name_space, const ListOptions& options) {
  return Lister(cluster, pool, name_space, options).only();
}

}  // namespace nbdrados
