#!/bin/sh
# Prints apt preferences that hold every package of a LOCK at its version; a name=version list on apt's command line would not
# reach what the named packages depend on.
set -eu
sed -n 's/^\([^#=]*\)=\(.*\)/Package: \1\nPin: version \2\nPin-Priority: 1001\n/p' "$1"
