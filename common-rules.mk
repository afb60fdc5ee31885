# SPDX-License-Identifier: BSD-3-Clause
#
# What all the Makefiles share.

AM_CPPFLAGS = -I$(top_srcdir)/common
AM_CXXFLAGS = $(WARN_CXXFLAGS) $(SANITIZE_FLAGS) \
	-fvisibility=hidden -fvisibility-inlines-hidden -pthread
AM_LDFLAGS = $(SANITIZE_FLAGS) -pthread
