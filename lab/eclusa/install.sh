# Installs the edge on its machine: PACKAGE PKI NAME CONFIGURATION.
dpkg -i "$1"
cp "$2/ca.crt" /etc/eclusa/ca.crt
install -m 0644 "$2/$3.crt" /etc/eclusa/edge.crt
install -m 0600 -o eclusa-edge "$2/$3.key" /etc/eclusa/edge.key
install -m 0644 "$4" /etc/eclusa/edge.yaml
eclusa-edge --check-config --config /etc/eclusa/edge.yaml
if ! systemctl enable --now eclusa-edge; then
	journalctl --no-pager --lines=20 --unit=eclusa-edge
	exit 1
fi
