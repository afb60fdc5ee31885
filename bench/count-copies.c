/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Counts large memory copies of a program: LD_PRELOAD for
 * run-bench.py --count-copies, which compiles it.
 *
 * Every call of memcpy or memmove through the dynamic linker (that is, all
 * calls of shared libraries and plugins; the compiler puts only small copies
 * of constant size in line) with at least COUNT_COPIES_MIN bytes is counted
 * in the file COUNT_COPIES_FILE: two 64-bit numbers, calls and bytes.  Copies
 * by the kernel, from and to sockets, are not counted: every server has
 * the same ones.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct counters {
  uint64_t calls;
  uint64_t bytes;
};

typedef void *copy_function (void *, const void *, size_t);

static copy_function *real_memmove;
static struct counters *counters;
static size_t minimum;

__attribute__ ((constructor)) static void
start (void)
{
  const char *path = getenv ("COUNT_COPIES_FILE");
  const char *text = getenv ("COUNT_COPIES_MIN");
  void *map;
  int fd;

  /* A correct memmove is also a correct memcpy, and one is enough. */
  real_memmove = (copy_function *)dlsym (RTLD_NEXT, "memmove");
  if (path == NULL || text == NULL)
    return;
  minimum = strtoul (text, NULL, 10);
  fd = open (path, O_RDWR | O_CLOEXEC);
  if (fd == -1)
    return;
  map = mmap (NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED,
              fd, 0);
  close (fd);
  if (map != MAP_FAILED)
    counters = map;
}

static void *
copy (void *to, const void *from, size_t size)
{
  if (counters != NULL && size >= minimum) {
    __atomic_fetch_add (&counters->calls, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add (&counters->bytes, size, __ATOMIC_RELAXED);
  }
  if (real_memmove != NULL)
    return real_memmove (to, from, size);
  /* Before the constructor.  The volatile pointers keep the compiler from
   * turning the loops back into a call of memmove.
   */
  volatile unsigned char *t = to;
  const volatile unsigned char *f = from;
  if ((uintptr_t)to <= (uintptr_t)from)
    for (size_t i = 0; i < size; ++i)
      t[i] = f[i];
  else
    for (size_t i = size; i > 0; --i)
      t[i - 1] = f[i - 1];
  return to;
}

void *
memcpy (void *restrict to, const void *restrict from, size_t size)
{
  return copy (to, from, size);
}

void *
memmove (void *to, const void *from, size_t size)
{
  return copy (to, from, size);
}

void *
mempcpy (void *restrict to, const void *restrict from, size_t size)
{
  return (char *)copy (to, from, size) + size;
}

/* What _FORTIFY_SOURCE makes of them. */
void *__memcpy_chk (void *, const void *, size_t, size_t);
void *__memmove_chk (void *, const void *, size_t, size_t);

void *
__memcpy_chk (void *to, const void *from, size_t size, size_t room)
{
  if (size > room)
    abort ();
  return copy (to, from, size);
}

void *
__memmove_chk (void *to, const void *from, size_t size, size_t room)
{
  if (size > room)
    abort ();
  return copy (to, from, size);
}
