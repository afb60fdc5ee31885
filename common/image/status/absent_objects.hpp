// SPDX-License-Identifier: BSD-3-Clause
//
// A set of object numbers, in memory that follows what was put in and not how
// many objects there can be: an image of 1 EiB has 2^38 of 4 MiB.
//
// A bit for each object of a page, and pages only where there are some:
//
//     nodes_            slots of a node         page
//     +---+             +------------+          +--------+-----------------+
//     | --+------------>| nothing    |     +--->| number | 16,384 bits     |
//     |   |             | own page --+-----+    +--------+-----------------+
//     |   |             | all of N   |   page N, without memory of its own
//     +---+             +------------+
//
// A page has its slot by its number, modulo the number of slots.  So many pages
// as an object map can have do not meet; of a larger image, the page that came
// first stays, and the other one's objects are not put in.  The same becomes of
// those for which `own_pages` are too few: the set is used for what is known of
// objects, and knowing less is never wrong.
//
// Readers take no lock.  What they follow stays: nodes and own pages live, and
// keep their numbers, until release(), which comes when no reader is left.
// Only the bits change, and what a slot says as long as it is no own page.  So
// a reader, however late, finds bits of the objects that it asked for.

#ifndef NBDRADOS_IMAGE_STATUS_ABSENT_OBJECTS_HPP
#define NBDRADOS_IMAGE_STATUS_ABSENT_OBJECTS_HPP

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace nbdrados {

/// Thread-safe, but for release().  Takes at most 4.2 MiB.
class AbsentObjects {
  struct Page;

 public:
  static constexpr std::uint64_t page_objects = 16'384;
  /// Pages that are neither empty nor full; 2 KiB each.
  static constexpr std::size_t own_pages = 2048;
  /// So many pages do not meet: those of object_map_max objects.
  static constexpr std::size_t slots = 16'384;

  AbsentObjects() = default;
  ~AbsentObjects() { release(); }
  AbsentObjects(const AbsentObjects&) = delete;
  AbsentObjects& operator=(const AbsentObjects&) = delete;

  /// Without a lock, as end_of_run.
  [[nodiscard]] bool contains(std::uint64_t n) const noexcept {
    const std::uint64_t page = n / page_objects;
    const std::uint64_t slot = look_up(page);
    if (slot == full(page)) return true;
    const Page* own = own_page(slot, page);
    return own != nullptr && (own->word(n).load() >> n % 64 & 1) != 0;
  }
  /// The first number in [n, end) that the set has not, or `end`.
  [[nodiscard]] std::uint64_t end_of_run(std::uint64_t n,
                                         std::uint64_t end) const noexcept;

  /// Puts [first, end) in.  False where it is not all in.
  bool insert(std::uint64_t first, std::uint64_t end) noexcept;
  /// Takes n out, and where there is no memory to do it, others with it.
  void erase(std::uint64_t n) noexcept;
  /// Takes all out.  Readers may be under way.
  void clear() noexcept;
  /// As clear, and gives back what own pages take.  No reader may be under way.
  void release() noexcept;

 private:
  static constexpr std::size_t node_slots = 128;
  using Word = std::atomic<std::uint64_t>;

  struct Page {
    explicit Page(std::uint64_t no) noexcept : number(no) {}
    [[nodiscard]] Word& word(std::uint64_t n) noexcept {
      return words[n % page_objects / 64];
    }
    [[nodiscard]] const Word& word(std::uint64_t n) const noexcept {
      return words[n % page_objects / 64];
    }
    const std::uint64_t number;
    std::array<Word, page_objects / 64> words{};
  };
  /// 0: none of the page; full(page): all of it; else a Page's address.
  struct Node {
    std::array<Word, node_slots> slots{};
  };

  static constexpr std::uint64_t full(std::uint64_t page) noexcept {
    return page << 1 | 1;
  }
  /// Null where the slot has no own page, or another one's.
  static Page* own_page(std::uint64_t slot, std::uint64_t page) noexcept {
    if (slot == 0 || (slot & 1) != 0) return nullptr;
    Page* const own = page_at(slot);
    return own->number == page ? own : nullptr;
  }
  static Page* page_at(std::uint64_t slot) noexcept {
    return reinterpret_cast<Page*>(static_cast<std::uintptr_t>(slot));
  }
  static std::uint64_t slot_of(const Page* page) noexcept {
    return reinterpret_cast<std::uintptr_t>(page);
  }
  [[nodiscard]] std::uint64_t look_up(std::uint64_t page) const noexcept {
    const Node* node = nodes_[page / node_slots % nodes_.size()].load(
        std::memory_order_acquire);
    return node == nullptr
               ? 0
               : node->slots[page % node_slots].load(std::memory_order_acquire);
  }
  [[nodiscard]] Word* make_slot(std::uint64_t page) noexcept;
  [[nodiscard]] Page* make_page(std::uint64_t page) noexcept;
  [[nodiscard]] bool insert_in_page(std::uint64_t first,
                                    std::uint64_t end) noexcept;

  std::mutex mutex_;       // held for changes
  std::size_t pages_ = 0;  // guarded by mutex_: own ones
  std::array<std::atomic<Node*>, slots / node_slots> nodes_{};
};

}  // namespace nbdrados

#endif
