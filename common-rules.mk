# SPDX-License-Identifier: BSD-3-Clause
#
# What all the Makefiles share.

AM_CPPFLAGS = -I$(top_srcdir)/common
AM_CXXFLAGS = $(WARN_CXXFLAGS) $(SANITIZE_FLAGS) \
	-fvisibility=hidden -fvisibility-inlines-hidden -pthread
AM_LDFLAGS = $(SANITIZE_FLAGS) -pthread

# For programs that talk to the plugin over a socket: they are not under test,
# and a sanitizer leaves them too little address space for large images.
client_cxxflags = $(WARN_CXXFLAGS) -pthread
client_ldflags = -pthread
