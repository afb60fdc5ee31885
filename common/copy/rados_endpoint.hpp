// SPDX-License-Identifier: BSD-3-Clause
//
// An image or a striped object, straight from librados.

#ifndef NBDRADOS_COPY_RADOS_ENDPOINT_HPP
#define NBDRADOS_COPY_RADOS_ENDPOINT_HPP

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "copy/endpoint.hpp"
#include "copy/span_of_answers.hpp"
#include "copy/workers.hpp"
#include "image/image.hpp"

namespace nbdrados::copy {

class RadosEndpoint final : public Endpoint {
 public:
  struct Options {
    /// Operations that are carried out at the same time.
    std::size_t threads = 32;
    bool use_extents = true;
    /// Nobody has written to the image since it was made.
    bool is_new = false;
    std::string cluster = {};  ///< Cluster::fsid
    /// Gets what is known of an operation that has failed.  By any thread.
    std::function<void(const std::string&)> log = {};
  };
  /// Shares the image, which is open for writing where it is a destination.
  RadosEndpoint(std::shared_ptr<Image> image, Options options);

  [[nodiscard]] const Traits& traits() const noexcept override {
    return traits_;
  }
  [[nodiscard]] const std::shared_ptr<Image>& image() const noexcept {
    return image_;
  }
  [[nodiscard]] const Options& options() const noexcept { return options_; }
  void read(std::uint64_t offset, std::span<char> to, Done done) override;
  void write(std::uint64_t offset, std::span<const char> from,
             Done done) override;
  void zero(std::uint64_t offset, std::uint64_t length, bool may_trim,
            Done done) override;
  void flush(Done done) override;
  void extents(std::uint64_t offset, std::uint64_t length,
               std::function<void(int error, std::vector<Extent> found)> done)
      override;
  [[nodiscard]] std::string explain(int error) const override;
  /// What has not been begun ends with ECANCELED, and so does what comes.  What
  /// librados has been given ends when the OSDs answer.
  void cancel() noexcept override;
  /// Whether no operation is under way; after cancel() it stays so.
  [[nodiscard]] bool is_idle();

 private:
  /// An operation, which a thread of workers_ carries out.
  struct Job {
    enum class Kind : std::uint8_t { read, write, zero, flush, extents };
    void operator()();

    RadosEndpoint* endpoint = nullptr;
    Kind kind = Kind::flush;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    char* to = nullptr;
    const char* from = nullptr;
    bool may_trim = false;
    Done done = {};
    std::function<void(int, std::vector<Extent>)> told = {};
  };

  [[nodiscard]] std::vector<Extent> find_extents(std::uint64_t offset,
                                                 std::uint64_t length);
  void carry_out(const Job& job, std::vector<Extent>& found);
  [[nodiscard]] bool begin_operation();
  void end_operation();

  const std::shared_ptr<Image> image_;
  const Options options_;
  Traits traits_;
  std::mutex mutex_;
  std::size_t under_way_ = 0;  // guarded by mutex_
  bool cancelled_ = false;     // guarded by mutex_
  SpanOfAnswers span_{std::uint64_t{1} << 40};
  Workers<Job> workers_;  // goes first
};

}  // namespace nbdrados::copy

#endif
