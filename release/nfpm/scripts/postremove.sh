#!/bin/sh
# After the files are gone. dpkg calls it as "remove", "purge", "upgrade" and so
# on, RPM with the number of versions that stay.
set -e

case "$1" in
remove | purge | 0) ;;
*) exit 0 ;; # an upgrade, which looks after itself
esac

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

# What clusters have told the edge goes with its configuration. The user stays, as
# Debian wants it: its number must not come to belong to somebody else.
if [ "$1" = purge ]; then
	rm -rf /var/lib/eclusa-edge
fi
