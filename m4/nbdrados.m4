dnl SPDX-License-Identifier: BSD-3-Clause
dnl
dnl The project's own configure checks.

dnl NBDRADOS_MISSING_INIT, NBDRADOS_MISSING(WHAT, DEBIAN PACKAGES, FEDORA
dnl PACKAGES), NBDRADOS_MISSING_REPORT: collects what is missing and ends
dnl configure with the whole list, so that one installation is enough.
AC_DEFUN([NBDRADOS_MISSING_INIT],
[nbdrados_missing=
nbdrados_missing_debian=
nbdrados_missing_fedora=])

AC_DEFUN([NBDRADOS_MISSING],
[nbdrados_missing="$nbdrados_missing
    - $1
        Debian: $2
        Fedora: $3"
nbdrados_missing_debian="$nbdrados_missing_debian $2"
nbdrados_missing_fedora="$nbdrados_missing_fedora $3"])

AC_DEFUN([NBDRADOS_MISSING_REPORT],
[AS_IF([test -n "$nbdrados_missing"],
  [AC_MSG_ERROR([
  These required parts are missing:
$nbdrados_missing

  Debian: apt install$nbdrados_missing_debian
  Fedora: dnf install$nbdrados_missing_fedora
])])])

dnl NBDRADOS_CHECK_CXX_LIB(NAME, TEXT, LIBS, INCLUDES, BODY): compiles and links
dnl a program.  Sets have_NAME to yes or no and NAME_LIBS.
AC_DEFUN([NBDRADOS_CHECK_CXX_LIB],
[AC_MSG_CHECKING([for $2])
nbdrados_save_LIBS=$LIBS
LIBS="$3 $LIBS"
AC_LINK_IFELSE([AC_LANG_PROGRAM([$4], [$5])],
  [have_$1=yes], [have_$1=no])
LIBS=$nbdrados_save_LIBS
AC_MSG_RESULT([$have_$1])
AS_IF([test "$have_$1" = yes], [$1_LIBS="$3"], [$1_LIBS=])
AC_SUBST([$1_LIBS])])

dnl NBDRADOS_CEPH_VERSION: sets ceph_built to the release of Ceph that librados
dnl is of.  Its headers do not have it: 3.0.0 is librados of all of them.
AC_DEFUN([NBDRADOS_CEPH_VERSION],
[AC_MSG_CHECKING([for the release of Ceph])
nbdrados_save_LIBS=$LIBS
LIBS="$RADOS_LIBS $LIBS"
AC_RUN_IFELSE([AC_LANG_PROGRAM([
    #include <dlfcn.h>
    #include <cstdio>
    #include <rados/librados.hpp>
  ], [
    int n;
    librados::Rados::version (&n, &n, &n);
    void *f = dlsym (RTLD_DEFAULT, "_Z19ceph_version_to_strv");
    std::FILE *file = std::fopen ("conftest.out", "w");
    if (!f || !file) return 1;
    std::fputs (reinterpret_cast<const char *(*)()> (f) (), file);
    return std::fclose (file);
  ])],
  [ceph_built=`cat conftest.out`], [ceph_built=unknown], [ceph_built=unknown])
rm -f conftest.out
LIBS=$nbdrados_save_LIBS
AC_MSG_RESULT([$ceph_built])])

dnl NBDRADOS_WARNINGS: sets WARN_CXXFLAGS, with -Werror on --enable-werror.
dnl A flag that the compiler does not know is left out.
AC_DEFUN([NBDRADOS_WARNINGS],
[WARN_CXXFLAGS=
for nbdrados_flag in -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor \
                     -Wold-style-cast -Woverloaded-virtual; do
  AC_MSG_CHECKING([whether $CXX accepts $nbdrados_flag])
  nbdrados_save_CXXFLAGS=$CXXFLAGS
  CXXFLAGS="$CXXFLAGS -Werror $nbdrados_flag"
  AC_COMPILE_IFELSE([AC_LANG_PROGRAM([], [])],
    [WARN_CXXFLAGS="$WARN_CXXFLAGS $nbdrados_flag"
     AC_MSG_RESULT([yes])],
    [AC_MSG_RESULT([no])])
  CXXFLAGS=$nbdrados_save_CXXFLAGS
done
AS_IF([test "$enable_werror" != no],
  [enable_werror=yes
   WARN_CXXFLAGS="$WARN_CXXFLAGS -Werror"])
AC_SUBST([WARN_CXXFLAGS])])

dnl NBDRADOS_SANITIZERS: sets SANITIZE_FLAGS (compiling and linking),
dnl FUZZER_LINK_FLAGS (linking of libFuzzer targets) and NBDRADOS_PRELOAD (the
dnl runtime libraries of the sanitizers, separated by colons).  nbdkit itself is not
dnl built with a sanitizer, so the plugin can only be loaded into it when the
dnl runtime was loaded before everything else.
AC_DEFUN([NBDRADOS_SANITIZERS],
[SANITIZE_FLAGS=
FUZZER_LINK_FLAGS=
NBDRADOS_PRELOAD=
AS_IF([test "$enable_sanitizers" != no],
  [dnl By default UBSan only prints, and no test would fail.
   SANITIZE_FLAGS="-fsanitize=$enable_sanitizers -fno-sanitize-recover=all -fno-omit-frame-pointer"
   AC_MSG_CHECKING([whether programs link with -fsanitize=$enable_sanitizers])
   nbdrados_save_CXXFLAGS=$CXXFLAGS
   CXXFLAGS="$CXXFLAGS $SANITIZE_FLAGS"
   AC_LINK_IFELSE([AC_LANG_PROGRAM([], [])],
     [AC_MSG_RESULT([yes])
      dnl The libraries that a sanitized program really loads.  The file of
      dnl -print-file-name may be a linker script, which cannot be preloaded.
      NBDRADOS_PRELOAD=`ldd conftest$EXEEXT |
        $SED -n 's%^.*lib\(a\|t\|ub\|l\)san[[^ ]]* => \(/[[^ ]]*\) .*$%\2%p' |
        tr '\n' ':' | $SED 's/:$//'`],
     [AC_MSG_RESULT([no])
      AC_MSG_ERROR([$CXX cannot link with -fsanitize=$enable_sanitizers (Debian: part of g++, Fedora: libasan libubsan libtsan)])])
   CXXFLAGS=$nbdrados_save_CXXFLAGS
   AC_MSG_CHECKING([for the shared sanitizer runtime])
   AS_IF([test -z "$NBDRADOS_PRELOAD"],
     [AC_MSG_RESULT([not found])
      AC_MSG_ERROR([$CXX has no shared sanitizer runtime that could be loaded into nbdkit: use CXX=g++])])
   AC_MSG_RESULT([$NBDRADOS_PRELOAD])])
AS_IF([test "$enable_libfuzzer" != no],
  [enable_libfuzzer=yes
   SANITIZE_FLAGS="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
   SANITIZE_FLAGS="$SANITIZE_FLAGS -fno-omit-frame-pointer"
   FUZZER_LINK_FLAGS="-fsanitize=fuzzer"
   AC_MSG_CHECKING([whether $CXX has libFuzzer])
   nbdrados_save_CXXFLAGS=$CXXFLAGS
   CXXFLAGS="$CXXFLAGS $SANITIZE_FLAGS $FUZZER_LINK_FLAGS"
   AC_LINK_IFELSE(
     [AC_LANG_SOURCE([[
       #include <cstddef>
       #include <cstdint>
       extern "C" int LLVMFuzzerTestOneInput (const std::uint8_t*, std::size_t)
       { return 0; }]])],
     [AC_MSG_RESULT([yes])],
     [AC_MSG_RESULT([no])
      AC_MSG_ERROR([--enable-libfuzzer needs clang++ with its libFuzzer: use CXX=clang++ (Debian: clang, Fedora: clang compiler-rt)])])
   CXXFLAGS=$nbdrados_save_CXXFLAGS])
AM_CONDITIONAL([ENABLE_LIBFUZZER], [test "$enable_libfuzzer" = yes])
AC_SUBST([SANITIZE_FLAGS])
AC_SUBST([FUZZER_LINK_FLAGS])
AC_SUBST([NBDRADOS_PRELOAD])
])
