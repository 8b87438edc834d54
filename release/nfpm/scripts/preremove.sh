#!/bin/sh
# Before the files go. dpkg calls it as "remove" or "upgrade NEW-VERSION", RPM with
# the number of versions that stay.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;; # an upgrade: the edge runs on
esac

if [ -d /run/systemd/system ]; then
	systemctl disable --now eclusa-edge.service || true
fi

# A stopped edge leaves its addresses on the machine, so that a restart is not
# noticed. Nobody could take them away once the program is gone. As the edge's own
# user, so that its files stay that user's.
if [ -e /var/lib/eclusa-edge/announced.json ] && getent passwd eclusa-edge >/dev/null; then
	setpriv --reuid eclusa-edge --regid eclusa-edge --init-groups \
		--inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --bounding-set=-all,+net_admin \
		eclusa-edge withdraw --config /etc/eclusa/edge.yaml ||
		echo "eclusa-edge: load balancers' addresses may still be on this machine: see 'ip address'." >&2
fi
