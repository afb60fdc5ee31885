// SPDX-License-Identifier: BSD-3-Clause
//
// What is done only because it was measured to be faster.  Each has a switch,
// for diagnosis: when a server misbehaves, whoever looks for the reason can
// leave it out (nbdkit -D rados.NAME=0).  The results are the same without.

#ifndef NBDRADOS_RADOS_TUNING_HPP
#define NBDRADOS_RADOS_TUNING_HPP

namespace nbdrados {

/// Set before the first image is opened, then constant.  bench/DECISIONS.md says
/// what each one gains.
struct Tuning {
  /// Large reads of objects that were found sparse ask for what is there only.
  bool sparse_reads = true;
  /// Where objects are made one after the other, the object map says of the
  /// next ones too that they exist.
  bool reserve = true;
  /// Small adjacent writes that are in flight together become one operation.
  bool merge_writes = true;
  /// Before many objects are removed, OSDs are asked which are there.
  bool ask_first = true;
  /// With many requests in flight, threads do not push others off.
  bool batch_threads = true;
};
inline Tuning tuning;

}  // namespace nbdrados

#endif
