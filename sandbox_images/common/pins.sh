#!/bin/sh
# Prints apt preferences that hold every package of a LOCK at its version; a name=version list on apt's command line would not
# reach what the named packages depend on. usrmerge (which pulls in perl) is never the way to a merged /usr here.
set -eu
printf 'Package: usrmerge\nPin: release *\nPin-Priority: -1\n\n'
sed -n 's/^\([^#=]*\)=\(.*\)/Package: \1\nPin: version \2\nPin-Priority: 1001\n/p' "$1"
