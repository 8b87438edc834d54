# An edge's life as a service, on a machine that has just been switched on:
# scenario.sh PACKAGES HOLDER
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
packages=$1 holder=$2
until systemctl is-active --quiet sysinit.target; do
	sleep 0.1
done
ip link set lo up
dpkg --force-unsafe-io -i "$packages"/eclusa-edge_1.2.3-1_*.deb
cd /etc/eclusa
echo "enabled at first: $(systemctl is-enabled eclusa-edge || true), $(systemctl is-active eclusa-edge || true)"
sed -i -e 's/^name:/name: edge-1/' -e 's/^  listen:/  listen: 127.0.0.2:443/' \
	-e 's/^  mode: none/  mode: interface/' -e 's/^  interface:/  interface: lo/' \
	-e 's/^clusters:/clusters: [{name: prod, addressRanges: [192.0.2.128\/25], nodeRanges: [198.51.100.0\/24]}]/' edge.yaml
eclusa-edge pki init --dir pki
eclusa-edge pki edge --dir pki --name edge-1 --host 127.0.0.2
cp pki/ca.crt ca.crt
cp pki/edge-1.crt edge.crt
install -o eclusa-edge -m 0400 pki/edge-1.key edge.key

systemctl enable --now eclusa-edge
journalctl --no-pager -u eclusa-edge
echo "started: $(systemctl show -P SubState eclusa-edge), $(systemctl show -P StatusText eclusa-edge)"
first=$(systemctl show -P MainPID eclusa-edge)
echo "runs with $(grep -e ^CapEff -e ^CapBnd -e ^NoNewPrivs -e ^Seccomp: "/proc/$first/status" | tr -s '\t\n' ' ')as $(stat -c %U /proc/$first)"
echo "state: $(stat -c '%U %a' /var/lib/eclusa-edge)"

dpkg --force-unsafe-io -i "$packages"/eclusa-edge_1.2.4-1_*.deb
second=$(systemctl show -P MainPID eclusa-edge)
echo "upgraded: $(systemctl show -P SubState eclusa-edge), another process: $([ "$second" != "$first" ] && echo yes), $(systemctl show -P NRestarts eclusa-edge) restarts"
for i in $(seq 100); do
	[ -d "/proc/$first" ] || break
	sleep 0.1
done
echo "the process of before: $([ -d "/proc/$first" ] && echo there || echo gone), $(systemctl show -P SubState eclusa-edge)"

cp edge.yaml good.yaml
sed -i 's/^name: edge-1/name: UPPER/' edge.yaml
echo "reload of a wrong configuration: $(systemctl reload eclusa-edge 2>/dev/null && echo taken || echo refused), $(systemctl show -P SubState eclusa-edge)"

kill -KILL "$second"
for i in $(seq 100); do
	[ "$(systemctl show -P ExecMainStatus eclusa-edge)" = 78 ] && break
	sleep 0.1
done
echo "killed, with a wrong configuration: $(systemctl show -P ActiveState eclusa-edge), status $(systemctl show -P ExecMainStatus eclusa-edge), $(systemctl show -P NRestarts eclusa-edge) restart"

cp good.yaml edge.yaml
systemctl start eclusa-edge
kill -KILL "$(systemctl show -P MainPID eclusa-edge)"
for i in $(seq 100); do
	[ "$(systemctl show -P NRestarts eclusa-edge)" = 1 ] && [ "$(systemctl is-active eclusa-edge)" = active ] && break
	sleep 0.1
done
echo "killed: $(systemctl is-active eclusa-edge), $(systemctl show -P NRestarts eclusa-edge) restart"

systemctl stop eclusa-edge
echo "stopped: $(systemctl show -P Result eclusa-edge), status $(systemctl show -P ExecMainStatus eclusa-edge)"

# A connection is held in a process of before, which is the parent of the main one
# after one reload, and a stranger to it after two.
ip route add local 198.51.100.0/24 dev lo
eclusa-edge pki cluster --dir pki --name prod
sed -i '1i drainTimeout: 3s' edge.yaml
mkdir -p /etc/systemd/system/eclusa-edge.service.d
printf '[Service]\nWatchdogSec=8\n' >/etc/systemd/system/eclusa-edge.service.d/impatient.conf
systemctl daemon-reload
systemctl start eclusa-edge
"$holder" pki &
held() { # NUMBER: the holder has its connection of that number
	for i in $(seq 200); do
		[ "$(cat /holder 2>/dev/null)" = "$1" ] && return
		sleep 0.1
	done
	echo "the holder has connection $(cat /holder) and should have $1"
}
for reloads in 1 2; do
	held $reloads
	for i in $(seq $reloads); do
		systemctl reload eclusa-edge
		sleep 1 # those without connections end
	done
	kill -KILL "$(systemctl show -P MainPID eclusa-edge)"
	for i in $(seq 80); do
		[ "$(systemctl show -P NRestarts eclusa-edge)" = $reloads ] && [ "$(systemctl is-active eclusa-edge)" = active ] && break
		sleep 0.1
	done
	echo "killed while one drains, reloads $reloads: $(systemctl is-active eclusa-edge), $(systemctl show -P NRestarts eclusa-edge) restarts"
done
held 3

# One that hangs is killed by the watchdog, and started again.
kill -STOP "$(systemctl show -P MainPID eclusa-edge)"
held 4
logged() { journalctl --no-pager -o cat -u eclusa-edge | grep -q "$1" && echo "$1"; }
echo "hung: $(logged 'Watchdog timeout (limit 8s)!') $(logged 'SIGABRT: abort'), $(systemctl is-active eclusa-edge), $(systemctl show -P NRestarts eclusa-edge) restarts"
echo "its address: $(ip -o address show dev lo | grep -o '192.0.2.130[^ ]*')"

systemctl reload eclusa-edge
sleep 1
systemctl reload eclusa-edge
start=$(date +%s%N)
systemctl stop eclusa-edge
took=$((($(date +%s%N) - start) / 1000000))
echo "stopped while one drains: $([ $took -ge 2500 ] && [ $took -le 10000 ] && echo in peace || echo "after $took ms"), $(systemctl show -P Result eclusa-edge)"

systemctl start eclusa-edge
dpkg --force-unsafe-io -r eclusa-edge
echo "removed: $(systemctl is-active eclusa-edge || true), $(ip -o address show dev lo | grep -c 192.0.2.130) addresses"
kill $!
echo "the end"
