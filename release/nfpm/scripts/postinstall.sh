#!/bin/sh
# After the files are in place. dpkg calls it as "configure [OLD-VERSION]", RPM
# with the number of versions installed now.
#
# An upgrade never stops the running edge: a reload has a process of the new version
# take over from it, and traffic flows on whatever comes of that. A first installation starts nothing, since
# nobody has told the edge yet what it is to do.
set -e

case "$1" in
configure) upgrade="$2" ;;
1) upgrade="" ;;
[2-9]*) upgrade=yes ;;
*) exit 0 ;; # dpkg undoes something that has failed
esac

if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers /usr/lib/sysusers.d/eclusa-edge.conf
elif ! getent passwd eclusa-edge >/dev/null; then
	useradd --system --user-group --home-dir /var/lib/eclusa-edge --no-create-home \
		--shell /usr/sbin/nologin --comment "eclusa edge" eclusa-edge
fi

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	if [ -n "$upgrade" ] && systemctl is-active --quiet eclusa-edge.service; then
		if systemctl reload eclusa-edge.service; then
			echo "eclusa-edge: a process of the new version has taken over from the running one; no connection was cut."
		else
			echo "eclusa-edge: the running edge goes on as it was, since the reload was refused." >&2
			echo "eclusa-edge: 'systemctl status eclusa-edge' says why." >&2
		fi
	fi
fi

if [ -z "$upgrade" ]; then
	cat <<END
eclusa-edge is installed and not started. What is to be done:
  1. fill in /etc/eclusa/edge.yaml, and put the certificates that it names into
     place ('eclusa-edge pki --help' makes them)
  2. eclusa-edge --check-config --config /etc/eclusa/edge.yaml
  3. systemctl enable --now eclusa-edge
END
fi
