// SPDX-License-Identifier: BSD-3-Clause

#include "image/status/absent_objects.hpp"

#include <bit>
#include <memory>
#include <new>

namespace nbdrados {

std::uint64_t AbsentObjects::end_of_run(std::uint64_t n,
                                        std::uint64_t end) const noexcept {
  while (n < end) {
    const std::uint64_t page = n / page_objects;
    const std::uint64_t slot = look_up(page);
    if (slot == full(page)) {
      n = (page + 1) * page_objects;
      continue;
    }
    const Page* own = own_page(slot, page);
    if (own == nullptr) return n;
    const auto run =
        static_cast<unsigned>(std::countr_one(own->word(n).load() >> n % 64));
    n += run;
    if (run != 64 - (n - run) % 64) break;
  }
  return std::min(n, end);
}

/// Null: there is no memory for it.
AbsentObjects::Word* AbsentObjects::make_slot(std::uint64_t page) noexcept {
  std::atomic<Node*>& at = nodes_[page / node_slots % nodes_.size()];
  Node* node = at.load();
  if (node == nullptr) {
    node = new (std::nothrow) Node;
    if (node == nullptr) return nullptr;
    at.store(node);
  }
  return &node->slots[page % node_slots];
}

/// Null: there is no memory for it.
AbsentObjects::Page* AbsentObjects::make_page(std::uint64_t page) noexcept {
  if (pages_ == own_pages) return nullptr;
  Page* const own = new (std::nothrow) Page(page);
  if (own != nullptr) ++pages_;
  return own;
}

/// Of one page.
bool AbsentObjects::insert_in_page(std::uint64_t first,
                                   std::uint64_t end) noexcept {
  const std::uint64_t page = first / page_objects;
  Word* const slot = make_slot(page);
  if (slot == nullptr) return false;
  if (slot->load() == full(page)) return true;
  Page* own = own_page(slot->load(), page);
  if (own == nullptr) {
    if (slot->load() != 0) return false;
    if (end - first == page_objects) {
      slot->store(full(page));
      return true;
    }
    own = make_page(page);
    if (own == nullptr) return false;
    slot->store(slot_of(own));
  }
  while (first < end) {
    const std::uint64_t stop = std::min(end, (first / 64 + 1) * 64);
    const std::uint64_t bits = ~std::uint64_t{0} >> (64 - (stop - first));
    own->word(first).fetch_or(bits << first % 64);
    first = stop;
  }
  return true;
}

bool AbsentObjects::insert(std::uint64_t first, std::uint64_t end) noexcept {
  const std::scoped_lock lock(mutex_);
  bool all = true;
  while (first < end) {
    const std::uint64_t stop =
        std::min(end, (first / page_objects + 1) * page_objects);
    all = insert_in_page(first, stop) && all;
    first = stop;
  }
  return all;
}

void AbsentObjects::erase(std::uint64_t n) noexcept {
  const std::uint64_t page = n / page_objects;
  const std::uint64_t bit = std::uint64_t{1} << n % 64;
  const std::scoped_lock lock(mutex_);
  const std::uint64_t before = look_up(page);
  if (before != full(page)) {
    if (Page* own = own_page(before, page)) own->word(n).fetch_and(~bit);
    return;
  }
  Page* const own = make_page(page);
  if (own != nullptr) {
    for (Word& word : own->words) word.store(~std::uint64_t{0});
    own->word(n).store(~bit);
  }
  // Where there is a full page, there is its slot.
  make_slot(page)->store(slot_of(own));
}

void AbsentObjects::clear() noexcept {
  const std::scoped_lock lock(mutex_);
  for (const auto& at : nodes_) {
    Node* const node = at.load();
    if (node == nullptr) continue;
    for (Word& slot : node->slots) {
      const std::uint64_t now = slot.load();
      if ((now & 1) != 0) {
        slot.store(0);
      } else if (now != 0) {
        for (Word& word : page_at(now)->words) word.store(0);
      }
    }
  }
}

void AbsentObjects::release() noexcept {
  const std::scoped_lock lock(mutex_);
  for (auto& at : nodes_) {
    const std::unique_ptr<Node> node(at.exchange(nullptr));
    if (!node) continue;
    for (const Word& slot : node->slots)
      if (const std::uint64_t now = slot.load(); (now & 1) == 0)
        delete page_at(now);
  }
  pages_ = 0;
}

}  // namespace nbdrados
