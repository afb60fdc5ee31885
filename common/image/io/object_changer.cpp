// SPDX-License-Identifier: BSD-3-Clause

#include "image/io/object_changer.hpp"

#include <cerrno>
#include <memory>
#include <optional>
#include <vector>

#include "image/chunks.hpp"
#include "rados/tuning.hpp"

namespace nbdrados {

namespace {

/// What a change of an object takes.
struct Plan {
  bool skip = false;     // nothing
  bool guarded = false;  // a copy-up where the object is missing
  bool copy_up = false;  // a copy-up, for it is known to be missing
  bool creates = false;  // the parent has it, and perhaps nobody else
};

Plan make_plan(const ImageTraits& traits, const View& view,
               const ObjectTarget& target) {
  const bool gone = view.absent(target.object_no);
  if (!view.backed(traits.layout, target.object_no))
    return {.skip = gone && target.effect != ObjectTarget::Effect::write};
  const bool creates =
      view.map && (gone || view.map->state(target.object_no) ==
                               ObjectState::pending);
  if (target.whole && view.snapc.snaps.empty()) return {.creates = creates};
  return {.guarded = !gone, .copy_up = gone, .creates = creates && !gone};
}

/// Calls f(first, count) for each run of consecutive numbers.
template <class F>
void for_runs(const std::vector<std::uint64_t>& numbers, F&& f) {
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t n = 1;
    while (i + n < numbers.size() && numbers[i + n] == numbers[i] + n) ++n;
    f(numbers[i], n);
    i += n;
  }
}

}  // namespace

/// One call of ObjectChanger::run; the members are called in their order.
class ObjectChanger::Run {
 public:
  Run(ObjectChanger& owner, const View& view, std::size_t count,
      ObjectChange& change)
      : owner_(owner),
        core_(owner.core_),
        view_(view),
        count_(count),
        change_(change),
        several_(count == 1 ? 0 : count),
        steps_(count == 1 ? &single_ : several_.data()) {}
  /// Whatever comes of it, what was known of the objects holds no more.
  ~Run() {
    hold_.reset();
    for (std::size_t i = 0; i < count_; ++i) core_.known.forget(number(i));
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  void plan();
  void announce();
  void send();
  void copy_up();
  [[nodiscard]] std::size_t end(const char* doing);

 private:
  struct Step {
    Plan plan;
    int result = 0;
  };

  [[nodiscard]] std::uint64_t number(std::size_t i) const {
    return change_.target(i).object_no;
  }
  [[nodiscard]] bool removing(std::size_t i) const {
    return removes(core_.traits, view_, change_.target(i));
  }
  void announce_one(ObjectMap& map);
  void announce_all(ObjectMap& map);

  ObjectChanger& owner_;
  ImageCore& core_;
  const View& view_;
  const std::size_t count_;
  ObjectChange& change_;
  // One object is the common case and needs no memory for lists.
  Step single_;
  std::vector<Step> several_;
  Step* const steps_;
  std::optional<ObjectGuards::Hold> hold_;
  bool alone_ = false;  // something is removed, with an object map
  std::vector<std::size_t> copies_;     // which are to be copied up
  std::vector<std::uint64_t> removed_;  // objects that the map is told of
};

void ObjectChanger::Run::plan() {
  if (view_.map) {
    for (std::size_t i = 0; i < count_ && !alone_; ++i) alone_ = removing(i);
    if (count_ == 1)
      hold_.emplace(owner_.guards_, number(0), alone_);
    else
      hold_.emplace(
          owner_.guards_, count_, [this](std::size_t i) { return number(i); },
          alone_);
  }
  for (std::size_t i = 0; i < count_; ++i)
    steps_[i].plan = make_plan(core_.traits, view_, change_.target(i));
}

/// Tells the object map what is about to happen.
void ObjectChanger::Run::announce() {
  if (!view_.map) return;
  change_map(view_, [this](ObjectMap& map) {
    if (count_ == 1 && !alone_)
      announce_one(map);
    else
      announce_all(map);
  });
}

void ObjectChanger::Run::announce_one(ObjectMap& map) {
  const Plan& plan = single_.plan;
  const ObjectTarget target = change_.target(0);
  if (plan.creates)
    map.begin_creation(target.object_no, 1);
  else if (tuning.reserve && target.effect == ObjectTarget::Effect::write &&
           !view_.backed(core_.traits.layout, target.object_no))
    map.mark_written(target.object_no);
  else if (!plan.skip && !plan.copy_up)
    map.mark_exists(target.object_no, 1);
}

void ObjectChanger::Run::announce_all(ObjectMap& map) {
  std::vector<std::uint64_t> written;
  std::vector<std::uint64_t> created;
  for (std::size_t i = 0; i < count_; ++i) {
    const Plan& plan = steps_[i].plan;
    if (plan.skip || plan.copy_up) continue;
    (removing(i) ? removed_ : plan.creates ? created : written)
        .push_back(number(i));
  }
  if (!written.empty()) map.mark_exists(written);
  if (!created.empty()) map.begin_creation(created);
  for_runs(removed_, [&](std::uint64_t first, std::size_t n) {
    map.begin_removal(first, n);
  });
}

void ObjectChanger::Run::send() {
  for_objects(
      count_,
      [&](std::size_t i) -> std::unique_ptr<Pending> {
        const Plan& plan = steps_[i].plan;
        if (plan.copy_up) copies_.push_back(i);
        if (plan.skip || plan.copy_up) return nullptr;
        WriteOp op;
        if (plan.guarded) op.assert_exists();
        add_operation(core_.traits, view_, change_, i, op);
        return core_.data.write(core_.traits.object_name(number(i)), op,
                                view_.snapc);
      },
      [&](std::size_t i, int result) {
        steps_[i].result = result;
        if (steps_[i].plan.guarded && result == -ENOENT) copies_.push_back(i);
      });
  std::vector<std::uint64_t> created;
  for (std::size_t i = 0; i < count_; ++i) {
    // What took too long may still happen, whatever becomes of the others.
    if (steps_[i].result == -ETIMEDOUT) core_.state.distrust();
    if (steps_[i].plan.creates && steps_[i].result >= 0)
      created.push_back(number(i));
  }
  if (!created.empty())
    change_map(view_, [&](ObjectMap& map) { map.mark_exists(created); });
}

void ObjectChanger::Run::copy_up() {
  const auto copy = [this](std::size_t k) {
    const std::size_t i = copies_[k];
    steps_[i].result = owner_.copy_up_.run(view_, change_, i);
    if (steps_[i].result == -ETIMEDOUT) core_.state.distrust();
  };
  if (copies_.size() == 1)
    copy(0);
  else if (!copies_.empty())
    core_.options.workers->for_each(copies_.size(), copy);
}

/// Throws the first error; returns how many objects were not there.
std::size_t ObjectChanger::Run::end(const char* doing) {
  std::size_t missing = 0;
  for (std::size_t i = 0; i < count_; ++i) {
    const int r = steps_[i].result;
    if (r >= 0) continue;
    const ObjectTarget t = change_.target(i);
    // What is to be zero or gone may well not be there.
    if (r != -ENOENT || t.effect == ObjectTarget::Effect::write)
      core_.traits.object_error(-r, doing, t.object_no);
    ++missing;
  }
  if (!removed_.empty())
    change_map(view_, [this](ObjectMap& map) {
      for_runs(removed_, [&](std::uint64_t first, std::size_t n) {
        map.end_removal(first, n);
      });
    });
  return missing;
}

std::size_t ObjectChanger::run(const View& view, std::size_t count,
                               ObjectChange& change, const char* doing) {
  Run run(*this, view, count, change);
  run.plan();
  run.announce();
  run.send();
  run.copy_up();
  return run.end(doing);
}

}  // namespace nbdrados
