# Boots systemd on a copy of this machine, of which everything that is written
# goes to another folder: boot.sh FOLDER PACKAGES. To be run in new namespaces of
# every kind but that of users. What is shared with this machine is read-only.
set -e
cd "$1"
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount --bind "$2" mnt
mount -t tmpfs -o mode=755 run run
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
for d in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
	set -- $d
	mknod -m 666 "dev/$1" c "$2" "$3"
done
mkdir dev/shm dev/pts dev/mqueue dev/hugepages
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
touch dev/console
ip link set lo up
hostname edge
cat >etc/systemd/system/scenario.service <<'END'
[Unit]
DefaultDependencies=no
After=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/sh -x /scenario.sh
StandardOutput=file:/output
StandardError=file:/output
ExecStopPost=/bin/touch /done
END
mkdir -p old
pivot_root . old
cd /
umount -l /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --system --unit=scenario.service --show-status=false --log-level=warning
